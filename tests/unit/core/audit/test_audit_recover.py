"""A killed writer loses nothing it had flushed, and its segment reaches the archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.audit import Clock, House, MemoryStore, emit_calls, overwrite

from airflow_ai_provider.core.audit.sealing.recover import recover_open
from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import public_keys
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.core.ledger.database import Ledger

KILLS = 20
HOST = """
import json, os, random, signal, sys, time
from pathlib import Path
root, here, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.path.insert(0, here)
from support.audit import emit_calls
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.ledger.database import Ledger

def write(tell):
    with Ledger.open(f"sqlite:///{root / 'ledger.db'}") as ledger:
        trail = Trail(Spool(root / "spool"), LedgerAuditStore(ledger), segment_events=150)
        while True:
            last = emit_calls(trail, 7)[-1]
            trail.flush()
            os.write(tell, f"{last} ".encode())

rng, promised = random.Random(2025), []
Ledger.open(f"sqlite:///{root / 'ledger.db'}").close()
for _ in range(kills):
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        write(tell)
    os.close(tell)
    heard, wanted = b"", rng.randrange(1, 60)
    while heard.count(b" ") < wanted:
        heard += os.read(hear, 65536)
    until = time.perf_counter() + rng.random() * 0.004
    while time.perf_counter() < until:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(hear, 65536):
        heard += more
    os.close(hear)
    promised.append(heard.split()[-1].decode())
print(json.dumps(promised))
"""


def open_path(house: House) -> Path:
    (name,) = house.spool.names("open")
    return house.spool.path(name, "open")


def die(house: House, count: int = 5) -> Path:
    """What a writer leaves that was killed after a flush."""
    trail = house.trail()
    emit_calls(trail, count)
    trail.flush()
    assert trail._segment is not None
    trail._segment.abandon()
    return open_path(house)


def test_kill_9_at_twenty_random_points_loses_no_promised_event_and_marks_the_gap(tmp_path: Path) -> None:
    """Writers of their own process, killed somewhere between two flushes, in the middle of one, or of a new segment."""
    ran = subprocess.run(
        [sys.executable, "-c", HOST, str(tmp_path), str(Path(__file__).parents[3]), str(KILLS)],
        stdout=subprocess.PIPE,
        check=True,
    )
    promised = json.loads(ran.stdout)
    assert len(promised) == len({each.partition("-")[0] for each in promised}) == KILLS
    house = House(tmp_path)
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        store = LedgerAuditStore(ledger)
        left_open = set(house.spool.names("open"))
        recovered = recover_open(house.spool, house.clock())
        assert {each.segment for each in recovered} == left_open
        assert len(left_open) >= KILLS - 3, "a kill between two segments leaves none open, and is rare"
        with Trail(house.spool, store) as trail:
            trail.emit_many([("segment.recovered", "unknown", each.fields()) for each in recovered])
        seal_trail(house.spool, house.archive, store, house.key, house.clock())
        seen: list[dict[str, Any]] = []
        report = verify(
            house.archive,
            house.spool,
            store,
            public_keys(house.key),
            visit=lambda document, body: seen.append(document),
        )
    assert report.findings == []
    ids = {event["event.id"] for event in seen}
    for last in promised:
        writer, _, number = last.rpartition("-")
        assert all(f"{writer}-{each}" in ids for each in range(1, int(number) + 1))
    marked = {event["airflow_ai.segment"] for event in seen if event["event.action"] == "segment.recovered"}
    assert marked == left_open
    noted = [note for note in report.notes if note.kind == "segment_recovered"]
    # A writer that was killed after its seal and before its rename has sealed the segment itself.
    assert len(left_open) - 3 <= len(noted) <= len(left_open)


def test_a_living_writer_is_left_alone(house: House) -> None:
    with house.trail() as trail:
        emit_calls(trail, 1)
        assert recover_open(house.spool, house.clock()) == []
        emit_calls(trail, 1)
    assert house.verify().findings == []


def test_a_torn_line_of_any_length_is_cut_and_told(house: House) -> None:
    path = die(house, 3)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    whole = len(data) - len(lines[-1])
    for end in [*range(whole + 1, len(data), 7), len(data) - 1]:
        overwrite(path, data[:end])
        assert [finding.kind for finding in house.verify().findings] == []
        (recovery,) = recover_open(house.spool, house.clock())
        # Without its line end a record is whole, but nobody was promised it.
        assert (recovery.events, recovery.torn_bytes, recovery.damaged) == (2, end - whole, False)
        sealed = house.spool.path(path.stem, "sealed")
        check = check_segment([sealed.read_bytes()], sealed=True)
        assert check.fault is None
        assert check.seal is not None
        assert check.seal.recovered
        sealed.rename(path)


def test_recovery_says_so_in_a_note_and_in_its_fields(house: House) -> None:
    path = die(house)
    with path.open("ab") as stream:
        stream.write(b'{"@timest')
    (recovery,) = recover_open(house.spool, house.clock())
    assert recovery.fields() == {"segment": path.stem, "events": 5, "torn_bytes": 9, "damaged": False}
    house.seal()
    with house.trail() as trail:
        trail.emit("segment.recovered", "ok", **recovery.fields())
    report = house.verify()
    assert report.findings == []
    assert "segment_recovered" in {note.kind for note in report.notes}


def test_a_changed_record_of_a_dead_writer_is_kept_and_found(house: House) -> None:
    """Cutting it off silently would do the attacker's work."""
    path = die(house)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    lines[3] = lines[3].replace(b"gpt-4o-mini", b"gpt-4o-MINI")
    overwrite(path, b"".join(lines))
    (before,) = house.verify().findings
    assert before.place.endswith("record 3")
    (recovery,) = recover_open(house.spool, house.clock())
    assert (recovery.events, recovery.damaged) == (2, True)
    assert house.spool.path(path.stem, "torn").read_bytes() == b"".join(lines[3:])
    house.seal()
    (finding,) = house.verify().findings
    assert finding.kind == "segment_damaged"
    assert finding.place.endswith("after record 2")


def test_damage_survives_a_recovery_that_died_after_cutting(house: House) -> None:
    path = die(house)
    lines = path.read_bytes().splitlines(keepends=True)
    overwrite(path, b"".join(lines[:3]))
    house.spool.path(path.stem, "torn").write_bytes(b"".join(lines[4:]))
    (recovery,) = recover_open(house.spool, house.clock())
    assert recovery.damaged


def test_a_writer_that_died_between_seal_and_rename_is_finished(house: House) -> None:
    house.write(3)
    (name,) = house.spool.names("sealed")
    house.spool.path(name, "sealed").rename(house.spool.path(name, "open"))
    (recovery,) = recover_open(house.spool, house.clock())
    assert (recovery.events, recovery.torn_bytes, recovery.sealed) == (3, 0, True)
    house.seal()
    assert house.verify().findings == []


def test_a_lost_head_is_left_for_verify(house: House) -> None:
    path = die(house)
    overwrite(path, b"garbage\n" + path.read_bytes())
    (recovery,) = recover_open(house.spool, house.clock())
    assert not recovery.sealed
    assert [finding.place for finding in house.verify().findings] == [f"spool {path.name}: head"]


def test_an_abandoned_segment_is_noted(house: House) -> None:
    die(house)
    report = house.verify()
    assert (report.status, [note.kind for note in report.notes]) == (0, ["segment_abandoned"])


def test_a_fork_does_not_keep_a_dead_parents_segment_alive(house: House) -> None:
    """Airflow forks: the child shares the lock and must let go of it."""
    ready, tell = os.pipe()
    hold, release = os.pipe()
    parent = os.fork()
    if parent == 0:
        trail = House(house.root, MemoryStore(), Clock()).trail()
        emit_calls(trail, 2)
        trail.flush()
        if os.fork() == 0:
            os.close(release)
            os.write(tell, b"x")
            os.read(hold, 1)
            os._exit(0)
        os._exit(0)
    os.waitpid(parent, 0)
    os.read(ready, 1)
    (recovery,) = recover_open(house.spool, house.clock())
    assert recovery.events == 2
    for fd in (ready, tell, hold, release):
        os.close(fd)
