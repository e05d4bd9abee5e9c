"""The writer: chained, durable at flush, one process, one lock."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading

import orjson
import pytest
import rfc8785
from support.audit import House, call_fields, emit_calls

from airflow_ai_provider.core.audit.trail import segment as segment_module
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.errors import AuditError, LedgerUnavailable


def lines_of(house: House, state: str = "sealed") -> list[bytes]:
    (name,) = house.spool.names(state)
    return house.spool.path(name, state).read_bytes().splitlines(keepends=True)


def test_a_segment_can_be_verified_with_nothing_but_the_standards(house: House) -> None:
    """The published recipe, done with hashlib and the reference JCS: an auditor needs none of our code."""
    house.write(5)
    lines = [orjson.loads(line) for line in lines_of(house)]
    tags = [b"airflow-ai audit head 1\0", *[b"airflow-ai audit record 1\0"] * 5, b"airflow-ai audit seal 1\0"]
    previous = bytes(32)
    for tag, line in zip(tags, lines, strict=True):
        shown = line.pop("h")
        last, previous = previous, hashlib.sha256(tag + previous + rfc8785.dumps(line)).digest()
        assert previous.hex().startswith(shown)
    assert lines[0]["kind"] == "head"
    assert lines[-1]["kind"] == "seal"
    assert (lines[-1]["count"], lines[-1]["head"]) == (5, last.hex())


def test_a_trail_that_says_nothing_leaves_nothing(house: House) -> None:
    house.write(0)
    assert not house.spool.folder.exists()
    assert not house.store.registered


def test_event_ids_are_unique_and_counted(house: House) -> None:
    with house.trail() as trail:
        ids = trail.emit_many([("llm.call", "ok", call_fields(n)) for n in range(3)]) + emit_calls(trail, 2)
    assert ids == [f"{trail.writer}-{number}" for number in range(1, 6)]
    assert house.trail().writer != trail.writer


def test_flush_makes_events_readable_and_emit_alone_does_not(house: House) -> None:
    trail = house.trail()
    emit_calls(trail, 3)
    assert len(lines_of(house, "open")) == 1
    trail.flush()
    assert len(lines_of(house, "open")) == 4
    trail.close()


def test_files_are_private(house: House) -> None:
    house.write(1)
    (name,) = house.spool.names("sealed")
    assert stat.S_IMODE(house.spool.path(name, "sealed").stat().st_mode) == 0o600
    assert stat.S_IMODE(house.spool.folder.stat().st_mode) == 0o700


def test_segment_is_registered_before_its_first_event(house: House) -> None:
    trail = house.trail()
    emit_calls(trail, 1)
    assert list(house.store.registered) == house.spool.names("open")
    trail.close()


def test_rotation_links_segments_and_goes_on_counting(house: House) -> None:
    ids = house.write(25, segment_events=10)
    names = house.spool.names("sealed")
    checks = [check_segment([house.spool.path(name, "sealed").read_bytes()], sealed=True) for name in names]
    assert [check.count for check in checks] == [10, 10, 5]
    heads = [check.head for check in checks if check.head]
    assert [head.first for head in heads] == [1, 11, 21]
    assert [head.previous for head in heads] == ["0" * 64, checks[0].seal_hash, checks[1].seal_hash]
    assert len(set(ids)) == 25
    assert house.verify().findings == []


def test_rotation_by_size(house: House) -> None:
    house.write(20, segment_bytes=4000)
    assert len(house.spool.names("sealed")) > 2


def test_one_bad_event_refuses_the_whole_batch(house: House) -> None:
    with house.trail() as trail:
        with pytest.raises(AuditError):
            trail.emit_many([("llm.call", "ok", call_fields(1)), ("llm.call", "ok", {"prompt": "x"})])
        assert trail.emit("llm.call", **call_fields(2)).endswith("-1")
    assert house.verify().events == 1


def test_threads_share_one_chain(house: House) -> None:
    with house.trail(segment_events=100) as trail:

        def work() -> None:
            for number in range(100):
                trail.emit("llm.call", **call_fields(number))
                if number % 10 == 0:
                    trail.flush()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report = house.verify()
    assert (report.findings, report.events) == ([], 800)


def test_a_forked_child_is_refused_and_writes_nothing(house: House) -> None:
    with house.trail() as trail:
        emit_calls(trail, 1)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            for use in (lambda: trail.emit("llm.call", request_id="r"), trail.flush, trail.close):
                try:
                    use()
                except AuditError as error:
                    os.write(writer, b"child" if "child" in str(error) else b"?")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 100) == b"child" * 3
        os.close(reader)
        os.close(writer)
        emit_calls(trail, 1)
    report = house.verify()
    assert (report.findings, report.events) == ([], 2)


def test_use_after_close_is_refused(house: House) -> None:
    trail = house.trail()
    trail.close()
    trail.close()
    with pytest.raises(AuditError, match="closed"):
        trail.emit("llm.call", request_id="r")


def test_a_full_disk_loses_nothing_that_is_flushed_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed write leaves half of its bytes behind; the next flush writes over them."""
    trail = house.trail()
    emit_calls(trail, 1)
    trail.flush()
    emit_calls(trail, 4)

    def half(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "write_at", half)
        with pytest.raises(AuditError, match="No space left"):
            trail.flush()
    emit_calls(trail, 2)
    trail.close()
    report = house.verify()
    assert (report.findings, report.events) == ([], 7)


def test_an_unreachable_registry_takes_no_events_and_is_asked_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = house.trail()

    def down(*_: object) -> None:
        raise LedgerUnavailable("ledger is down")

    with monkeypatch.context() as patch:
        patch.setattr(house.store, "register_segment", down)
        with pytest.raises(LedgerUnavailable):
            emit_calls(trail, 1)
    emit_calls(trail, 2)
    trail.close()
    report = house.verify()
    assert (report.findings, report.events) == ([], 2)
    assert list(house.store.registered) == house.spool.names("sealed")


def test_a_folder_that_cannot_be_made_is_named(house: House) -> None:
    house.root.mkdir()
    (house.root / "spool").write_text("a file")
    with pytest.raises(AuditError, match="spool"):
        emit_calls(house.trail(), 1)
