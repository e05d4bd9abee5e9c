"""Writers, recovery, sealer and verification at the same time: no false alarm, nothing lost, nothing twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from support.audit import House, emit_calls

from airflow_ai_provider.core.audit.sealing.recover import recover_open

ROUNDS = 8


def test_verification_beside_writers_and_sealers_raises_no_alarm(house: House) -> None:
    done = threading.Event()

    def write() -> int:
        written = 0
        for _ in range(ROUNDS):
            with house.trail(segment_events=3) as trail:
                for _ in range(4):
                    written += len(emit_calls(trail, 2))
                    trail.flush()
        return written

    def seal() -> None:
        while not done.is_set():
            recover_open(house.spool, house.clock())
            house.seal()

    with ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        sealers = [pool.submit(seal) for _ in range(2)]
        reports = []
        while not all(writer.done() for writer in writers):
            reports.append(house.verify())
        done.set()
        for sealer in sealers:
            sealer.result()
    assert [report.findings for report in reports if report.findings] == []
    house.seal()
    final = house.verify()
    assert (final.status, final.notes) == (0, [])
    assert final.events == sum(writer.result() for writer in writers)
