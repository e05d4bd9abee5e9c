"""Delivery: everything sealed reaches both sinks once, whatever is down and whenever it is killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.audit import START, House, overwrite

from airflow_ai_provider.core.audit.sinks.archive import Archive, FolderArchive
from airflow_ai_provider.core.audit.sinks.deliver import (
    ARCHIVE_SINK,
    SinkReport,
    SpoolState,
    deliver_to_archive,
    deliver_to_index,
    index_sink,
    rebuild_index,
    spool_state,
)
from airflow_ai_provider.core.audit.sinks.progress import Cursor
from airflow_ai_provider.core.audit.sinks.search import Event, Query, Rejected
from airflow_ai_provider.core.audit.sinks.sqlite_index import SqliteIndex
from airflow_ai_provider.errors import AuditError, StoreUnavailable


class Killed(BaseException):
    """The process ends here."""


class WatchedIndex(SqliteIndex):
    """An index that counts what it is sent, refuses some, and ends the process or breaks after so many sendings."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sent: list[str] = []
        self.replays: list[bool] = []
        self.refuse: set[str] = set()
        self.fuse: int | None = None
        self.down = False

    def add(self, events: Sequence[Event], *, replay: bool = False) -> list[Rejected]:
        if self.down:
            raise StoreUnavailable("the index is down")
        self._tick()
        self.sent += [event["event.id"] for event in events]
        self.replays.append(replay)
        rejected = [Rejected(each["event.id"], "400 no") for each in events if each["event.id"] in self.refuse]
        super().add([each for each in events if each["event.id"] not in self.refuse])
        self._tick()
        return rejected

    def _tick(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Killed


class DownArchive(FolderArchive):
    def put(self, name: str, data: bytes) -> bool:
        raise StoreUnavailable("the archive is down")

    def list(self, prefix: str) -> Iterator[str]:
        raise StoreUnavailable("the archive is down")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[WatchedIndex]:
    with WatchedIndex(tmp_path / "search.db") as opened:
        yield opened


@pytest.fixture
def cursor(tmp_path: Path) -> Iterator[Cursor]:
    with Cursor(tmp_path / "delivery.db") as opened:
        yield opened


def to_index(
    house: House, index: WatchedIndex, cursor: Cursor, *, archive: Archive | None = None, chunk: int = 7
) -> SinkReport:
    return deliver_to_index(house.spool, archive or house.archive, index, cursor, START, chunk=chunk)


def indexed(index: WatchedIndex) -> list[str]:
    return sorted(event["event.id"] for event in index.search(Query(limit=100_000)))


# The index


def test_events_are_indexed_from_the_spool_and_once(house: House, index: WatchedIndex, cursor: Cursor) -> None:
    ids = house.write(20) + house.write(5)
    report = to_index(house, index, cursor)
    assert (report.segments, report.events, report.dead, report.problems, report.error) == (2, 25, 0, [], "")
    assert indexed(index) == sorted(ids)
    assert to_index(house, index, cursor).events == 0
    assert len(index.sent) == 25


def test_what_the_sealer_took_away_is_indexed_from_the_archive(
    house: House, index: WatchedIndex, cursor: Cursor
) -> None:
    first = house.write(10)
    to_index(house, index, cursor)
    second = house.write(10)
    house.seal()
    assert house.spool.names("sealed") == []
    assert to_index(house, index, cursor).events == 10
    assert indexed(index) == sorted(first + second)
    house.seal()
    assert to_index(house, index, cursor).events == 0
    assert sorted(index.sent) == sorted(first + second)


def test_an_open_segment_waits(house: House, index: WatchedIndex, cursor: Cursor) -> None:
    with house.trail() as trail:
        trail.emit("policy.loaded", "ok", policy_hash="0" * 64)
        trail.flush()
        assert to_index(house, index, cursor).events == 0
    assert to_index(house, index, cursor).events == 1


def test_an_index_that_is_down_loses_nothing_and_does_not_stop_the_archive(
    house: House, index: WatchedIndex, cursor: Cursor
) -> None:
    ids = house.write(20)
    index.down = True
    assert to_index(house, index, cursor).error == "the index is down"
    assert deliver_to_archive(house.spool, house.archive, cursor).segments == 1
    house.seal()
    ids += house.write(3)
    assert to_index(house, index, cursor).error == "the index is down"
    index.down = False
    assert to_index(house, index, cursor).events == 23
    assert indexed(index) == sorted(ids)


def test_an_archive_that_is_down_does_not_stop_the_index(
    house: House, index: WatchedIndex, cursor: Cursor, tmp_path: Path
) -> None:
    ids = house.write(20)
    down = DownArchive(tmp_path / "down")
    assert deliver_to_archive(house.spool, down, cursor).error == "the archive is down"
    report = to_index(house, index, cursor, archive=down)
    assert (report.events, report.error) == (20, "the archive is down")
    assert indexed(index) == sorted(ids)


def test_what_the_index_refuses_for_good_is_a_dead_letter_with_the_reason(
    house: House, index: WatchedIndex, cursor: Cursor
) -> None:
    ids = house.write(20)
    index.refuse = {ids[3], ids[12]}
    report = to_index(house, index, cursor)
    assert (report.events, report.dead) == (18, 2)
    letters = cursor.dead_letters(index_sink(index))
    assert [(each.record, each.event_id, each.reason) for each in letters] == [
        (4, ids[3], "400 no"),
        (13, ids[12], "400 no"),
    ]
    assert to_index(house, index, cursor).dead == 0
    assert len(cursor.dead_letters(index_sink(index))) == 2


def test_a_line_that_cannot_be_read_is_a_dead_letter_and_the_others_are_indexed(
    house: House, index: WatchedIndex, cursor: Cursor
) -> None:
    ids = house.write(5)
    (name,) = house.spool.names("sealed")
    path = house.spool.path(name, "sealed")
    lines = path.read_bytes().splitlines(keepends=True)
    overwrite(path, b"".join([*lines[:2], b"{broken\n", *lines[3:]]))
    assert to_index(house, index, cursor).dead == 1
    assert indexed(index) == sorted(set(ids) - {ids[1]})
    (letter,) = cursor.dead_letters(index_sink(index))
    assert (letter.record, letter.event_id, letter.reason) == (2, "", "cannot be read as an event")


def test_a_manifest_or_a_segment_that_vanished_holds_up_nothing(
    house: House, index: WatchedIndex, cursor: Cursor
) -> None:
    for _ in range(3):
        house.write(4)
        house.seal()
    house.objects("segments")[0].unlink()
    manifest = house.objects("manifests")[1]
    overwrite(manifest, b"{}")
    report = to_index(house, index, cursor)
    assert (report.events, report.error) == (4, "")
    assert [problem.reason.partition(";")[0] for problem in report.problems] == [
        "is not in the archive",
        "manifest cannot be read: it is not a manifest's JSON",
    ]


# Killed


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fuses=st.lists(st.integers(0, 5), min_size=1, max_size=12), seal_at=st.integers(0, 11))
def test_killed_anywhere_and_often_it_goes_forward_and_ends_with_each_event_once(
    tmp_path_factory: pytest.TempPathFactory, fuses: list[int], seal_at: int
) -> None:
    root = tmp_path_factory.mktemp("killed")
    house = House(root / "house")
    ids = house.write(30) + house.write(11)
    with WatchedIndex(root / "search.db") as index:
        for turn, fuse in enumerate(fuses):
            if turn == seal_at:
                house.seal()
            index.fuse = fuse
            with Cursor(root / "delivery.db") as cursor:
                try:
                    to_index(house, index, cursor)
                except Killed:
                    continue
        index.fuse = None
        with Cursor(root / "delivery.db") as cursor:
            assert to_index(house, index, cursor).error == ""
        assert indexed(index) == sorted(ids)
        # A kill costs the chunk it met, no more; and that chunk is sent with a warning.
        repeated = len(index.sent) - len(ids)
        assert repeated <= 7 * len(fuses)
        assert index.replays.count(True) <= len(fuses)


def test_a_chunk_is_said_to_be_a_replay_only_where_it_may_be_one(
    house: House, index: WatchedIndex, cursor: Cursor
) -> None:
    house.write(20)
    index.fuse = 3
    with pytest.raises(Killed):
        to_index(house, index, cursor)
    index.fuse = None
    to_index(house, index, cursor)
    assert index.replays == [False, False, True, False]


# The archive


def test_the_archive_gets_every_segment_and_the_sealer_finds_it_there(house: House, cursor: Cursor) -> None:
    house.write(5)
    house.write(5)
    report = deliver_to_archive(house.spool, house.archive, cursor)
    assert (report.segments, report.events, report.error) == (2, 10, "")
    assert len(house.spool.names("sealed")) == 2
    assert deliver_to_archive(house.spool, house.archive, cursor).segments == 0
    assert house.verify().status == 0
    assert (house.seal().segments, house.verify().status) == (2, 0)
    deliver_to_archive(house.spool, house.archive, cursor)
    assert not cursor.progress(ARCHIVE_SINK, "any").finished


def test_a_broken_segment_and_a_taken_name_stay_and_are_told(house: House, cursor: Cursor) -> None:
    house.write(5)
    house.write(5)
    house.write(5)
    first, second, _ = house.spool.names("sealed")
    path = house.spool.path(first, "sealed")
    overwrite(path, path.read_bytes().replace(b"openai", b"0penai", 1))
    house.archive.put(f"segments/2025/03/01/{second}.jsonl.gz", b"forged")
    report = deliver_to_archive(house.spool, house.archive, cursor)
    assert (report.segments, report.error) == (1, "")
    assert [(each.place, each.reason.partition(";")[0]) for each in report.problems] == [
        (first, "its chain is broken"),
        (second, f"segments/2025/03/01/{second}.jsonl.gz in the archive holds other bytes"),
    ]
    assert len(house.spool.names("sealed")) == 3


# The rest


def test_a_rebuilt_index_is_what_the_archive_holds(house: House, index: WatchedIndex, cursor: Cursor) -> None:
    ids = house.write(20)
    house.seal()
    waiting = house.write(3)
    to_index(house, index, cursor)
    index._db.execute("UPDATE events SET action = 'forged'")
    index._db.execute("DELETE FROM events WHERE rowid % 2")
    for _ in range(2):
        assert rebuild_index(house.spool, house.archive, index, cursor, START).events == 23
        assert indexed(index) == sorted(ids + waiting)
        assert len(index.search(Query(action="llm.call"))) == 23


def test_an_index_that_was_lost_is_filled_from_the_start(house: House, cursor: Cursor, tmp_path: Path) -> None:
    house.write(20)
    house.seal()
    with WatchedIndex(tmp_path / "one.db") as one:
        assert to_index(house, one, cursor).events == 20
    with WatchedIndex(tmp_path / "two.db") as two:
        assert to_index(house, two, cursor).events == 20


def test_one_delivery_at_a_time(tmp_path: Path) -> None:
    with Cursor(tmp_path / "delivery.db") as one, Cursor(tmp_path / "delivery.db") as two:
        with one.holding() as first, two.holding() as second:
            assert (first, second) == (True, False)
        with two.holding() as again:
            assert again


def test_a_cursor_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "delivery.db").write_bytes(b"something else altogether, and long enough" * 50)
    with pytest.raises(AuditError, match=r"audit cursor .*delivery.db cannot be opened: file is not a database"):
        Cursor(tmp_path / "delivery.db")


def test_what_waits_is_counted_and_raises_the_alarm(house: House) -> None:
    assert spool_state(house.spool).segments == 0
    house.write(5)
    state = spool_state(house.spool)
    assert (state.segments, state.bytes > 1000, state.free_bytes > 0) == (1, True, True)
    assert state.oldest is not None
    roomy = SpoolState(3, 2**20, state.oldest, 2**40)
    assert roomy.alarm(state.oldest + timedelta(minutes=59)) == ""
    assert "3 segments wait for the archive, the oldest for 2.0 hours" in roomy.alarm(state.oldest + timedelta(hours=2))
    full = SpoolState(3, 2**20, state.oldest, 2**29)
    assert "512 MiB left on its disk, 1 MiB wait for the archive" in full.alarm(state.oldest)
