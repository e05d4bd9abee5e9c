"""A killed writer loses nothing it had flushed, and its segment reaches the archive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from audit_kit import Clock, House, MemoryStore, emit_calls, overwrite

from airflow_ai_provider.audit.reader import check_segment
from airflow_ai_provider.audit.recover import recover_open

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from audit_kit import House, emit_calls
house = House(Path(sys.argv[1]))
trail = house.trail(segment_events=500)
while True:
    last = emit_calls(trail, 7)[-1]
    trail.flush()
    print(last, flush=True)
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


@pytest.mark.parametrize("flushes", [1, 40, 150])
def test_kill_9_keeps_every_flushed_event(house: House, flushes: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(house.root), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(flushes):
        last = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    # Lines the writer still got out before it died are promises as well.
    last = (process.stdout.read().split() or [last])[-1]
    process.wait()
    process.stdout.close()

    recover_open(house.spool, house.clock())
    assert house.spool.names("open") == []
    house.store = MemoryStore()
    for name in house.spool.names("sealed"):
        house.store.register_segment("main", name.rpartition("-")[0], name, house.clock())
    waiting = house.verify()
    house.seal()
    report = house.verify()
    assert waiting.findings == report.findings == []
    assert report.events == waiting.events >= int(last.rpartition("-")[2])


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
