"""Segments that wait on another host are no tampering, and do not stay unseen for ever."""

from __future__ import annotations

import shutil
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.audit import House, emit_calls
from support.search_double import SearchDouble

from airflow_ai_provider.core.administration.audit import record, seal_audit
from airflow_ai_provider.core.audit.sealing.seal import SealReport, seal_trail
from airflow_ai_provider.core.audit.sealing.signing import public_keys
from airflow_ai_provider.core.audit.sinks.archive import compress, segment_object
from airflow_ai_provider.core.audit.sinks.deliver import deliver_to_archive, deliver_to_index
from airflow_ai_provider.core.audit.sinks.elastic_index import ElasticIndex
from airflow_ai_provider.core.audit.sinks.progress import Cursor
from airflow_ai_provider.core.audit.sinks.search import STREAM, SearchAddress
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool, host_sign, is_from, new_writer_id
from airflow_ai_provider.core.audit.trail.trail import SEGMENT_AGE, Trail
from airflow_ai_provider.core.audit.verify.findings import VerifyReport
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.errors import AuditError


def test_names_are_unique_in_the_order_of_time_and_carry_their_host() -> None:
    now = datetime(2025, 3, 1, tzinfo=UTC)
    names = {new_writer_id(now) for _ in range(2000)}
    assert len(names) == 2000
    assert {len(name) for name in names} == {28}
    assert max(names) < new_writer_id(now + timedelta(milliseconds=1))
    assert all(is_from(name, host_sign()) for name in names)
    assert not is_from(new_writer_id(now, "another-host"), host_sign())


@pytest.mark.parametrize(
    ("host", "age", "findings", "notes"),
    [
        ("another-host", timedelta(hours=1), [], ["segment_elsewhere"]),
        ("another-host", timedelta(days=2), ["segment_unaccounted"], []),
        (None, timedelta(hours=1), ["segment_unaccounted"], []),
    ],
)
def test_a_segment_that_is_not_here(
    house: House, host: str | None, age: timedelta, findings: list[str], notes: list[str]
) -> None:
    opened = datetime.now(UTC) - age
    trail = Trail(house.spool, house.store, clock=lambda: opened)
    trail.writer = new_writer_id(opened, host)
    trail.emit("keys.generated", key_id="k1")
    trail.close()
    house.seal()
    house.write(1)
    house.seal()
    (lost,) = (path for path in house.objects("segments") if trail.writer in path.name)
    away = house.copy(house.root.parent / "away")
    for path in (*away.objects("segments"), *away.objects("manifests")):
        path.unlink()
    away.store.pinned.clear()
    away.store.registered = {name: each for name, each in away.store.registered.items() if lost.name.startswith(name)}
    away.seal()
    report = away.verify()
    assert [finding.kind for finding in report.findings] == findings
    assert [note.kind for note in report.notes] == notes


@pytest.mark.parametrize("moment", ["registered_segments", "pins"])
def test_a_sealer_at_work_during_a_verification_shows_each_event_once(
    house: House, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    written = house.write(5)
    house.seal()
    written += house.write(7)
    read, visited = getattr(house.store, moment), []

    def sealing_first(*args: Any, **options: Any) -> Any:
        if house.spool.names("sealed"):
            house.seal()
        return read(*args, **options)

    monkeypatch.setattr(house.store, moment, sealing_first)
    keys = public_keys(house.key)
    report = verify(
        house.archive, house.spool, house.store, keys, visit=lambda event, _: visited.append(event["event.id"])
    )
    assert report.findings == []
    assert sorted(visited) == sorted(written)


@dataclass(frozen=True)
class Elsewhere:
    """A host with a spool of its own, which shares archive, registry, pins and key with another."""

    house: House
    root: Path

    @property
    def spool(self) -> Spool:
        return Spool(self.root / "spool")

    def write(self, count: int, opened: datetime) -> str:
        """Events of a writer that is done; returns the name of its segment."""
        with Trail(self.spool, self.house.store, clock=lambda: opened) as trail:
            emit_calls(trail, count)
        return f"{trail.writer}-000001"

    def seal(self) -> SealReport:
        return seal_trail(self.spool, self.house.archive, self.house.store, self.house.key, self.house.clock())

    def verify(self, **options: Any) -> VerifyReport:
        house = self.house
        return verify(house.archive, self.spool, house.store, public_keys(house.key), **options)


@pytest.fixture
def other(house: House) -> Elsewhere:
    """Its host has the same name."""
    house.seal()
    return Elsewhere(house, house.root / "other")


def kinds(report: VerifyReport) -> tuple[list[str], list[str]]:
    return [each.kind for each in report.findings], [each.kind for each in report.notes]


def test_two_spools_of_hosts_with_one_name_are_told_apart(house: House, other: Elsewhere) -> None:
    other.write(3, datetime.now(UTC))
    assert kinds(house.verify()) == ([], ["segment_elsewhere"])
    assert kinds(other.verify()) == ([], ["segment_waiting"])
    other.seal()
    assert kinds(house.verify()) == ([], [])


@pytest.mark.parametrize("age", [timedelta(hours=23), timedelta(hours=25), timedelta(hours=-2), timedelta(days=-400)])
def test_elsewhere_is_an_excuse_for_a_day_and_not_for_times_to_come(
    house: House, other: Elsewhere, age: timedelta
) -> None:
    name = other.write(3, datetime.now(UTC) - age)
    other.spool.path(name, "sealed").unlink()
    excused = timedelta(0) <= age < timedelta(days=1)
    assert kinds(house.verify())[0] == ([] if excused else ["segment_unaccounted"])
    assert kinds(other.verify())[0] == ["segment_unaccounted"]


def test_a_segment_of_another_host_that_is_archived_and_not_listed_is_a_note_for_a_day(
    house: House, other: Elsewhere, tmp_path: Path
) -> None:
    name = other.write(3, datetime.now(UTC))
    with Cursor(tmp_path / "delivery.db") as cursor:
        deliver_to_archive(other.spool, house.archive, cursor)
    assert kinds(house.verify()) == ([], ["segment_unlisted", "segment_elsewhere"])
    registered = house.store.registered[name]
    house.store.registered[name] = replace(registered, opened_at=datetime.now(UTC) - timedelta(days=2))
    assert kinds(house.verify()) == (["segment_unlisted", "segment_unaccounted"], [])


def test_an_archived_segment_that_nobody_registered_is_no_other_hosts(house: House, other: Elsewhere) -> None:
    name = other.write(3, datetime.now(UTC))
    data = other.spool.path(name, "sealed").read_bytes()
    del house.store.registered[name]
    head = check_segment([data], sealed=True).head
    assert head is not None
    house.archive.put(segment_object(head), compress(data))
    assert kinds(house.verify()) == (["segment_unlisted"], [])


def test_a_range_knows_what_was_opened_before_it_and_sealed_since(house: House, other: Elsewhere) -> None:
    """Shortly after midnight another host has a segment of yesterday's: it is not the range's, and no finding."""
    yesterday = datetime.now(UTC) - timedelta(hours=20)
    sealed = other.write(2, yesterday)
    other.seal()
    waits = other.write(2, yesterday)
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    report = verify(house.archive, house.spool, house.store, public_keys(house.key), since=tomorrow)
    assert kinds(report)[0] == []
    assert {each.segment for each in report.elsewhere} <= {waits}
    assert sealed not in {each.segment for each in report.elsewhere}


@pytest.mark.parametrize("waits", [True, False])
def test_a_sealer_waits_for_another_hosts_if_it_has_something_to_seal(tmp_path: Path, waits: bool) -> None:
    settings = Settings(home=tmp_path, policy_path=tmp_path / "policy.yaml")
    if waits:
        record(settings, "keys.generated", None, key_id="k1")
    held, asked = threading.Event(), threading.Event()

    def hold() -> None:
        with open_ledger(None, tmp_path) as ledger, LedgerAuditStore(ledger).sealer_lock("main") as mine:
            assert mine
            held.set()
            asked.wait(30)

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(hold)
        assert held.wait(30)
        sealing = pool.submit(seal_audit, settings)
        done, _ = wait([sealing], timeout=3 if waits else 60)
        assert bool(done) is not waits
        asked.set()
        holding.result()
        assert sealing.result(60).sequence == (1 if waits else None)


def test_two_hosts_deliver_to_one_index_and_each_event_is_there_once(
    house: House, other: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the index was rolled over between them."""
    with SearchDouble() as double, ElasticIndex(SearchAddress(double.url)) as index:
        index.prepare()
        for number in range(3):
            hosts = ("one", house.spool, house.seal), ("two", other.spool, other.seal)
            for name, spool, seal in hosts:
                monkeypatch.setattr(socket, "gethostname", partial(str, name))
                with Trail(spool, house.store) as trail:
                    emit_calls(trail, 4 if name == "one" else 3)
                with Cursor(tmp_path / f"{name}.db") as cursor:
                    report = deliver_to_index(spool, house.archive, index, cursor, datetime.now(UTC))
                assert (report.error, report.problems) == ("", [])
                seal()
                double.rollover(STREAM)
            monkeypatch.setattr(socket, "gethostname", partial(str, "one"))
            with Cursor(tmp_path / "one.db") as cursor:
                deliver_to_index(house.spool, house.archive, index, cursor, datetime.now(UTC))
            assert len(double.documents(STREAM)) == 7 * (number + 1)


def test_a_spool_keeps_its_id_and_a_copy_that_is_written_to_gets_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a")
    assert spool.identity() is None
    spool.prepare()
    first = spool.identity(create=True)
    assert first is not None
    assert len(first) == 32
    assert Spool(tmp_path / "a").identity(create=True) == first
    assert stat.S_IMODE((spool.folder / "spool_id").stat().st_mode) == 0o600
    (tmp_path / "a").rename(tmp_path / "renamed")
    assert Spool(tmp_path / "renamed").identity(create=True) == first
    shutil.copytree(tmp_path / "renamed", tmp_path / "copy")
    copy = Spool(tmp_path / "copy")
    assert copy.identity() == first
    assert copy.identity(create=True) != first
    assert Spool(tmp_path / "renamed").identity(create=True) == first


def test_writers_that_start_at_once_agree_on_the_id(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: Spool(tmp_path / "spool").identity(create=True), range(32)))
    assert ids == {spool.identity()}
    assert [path.name for path in spool.folder.iterdir()] == ["spool_id"]


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b'{"spool": 1', b"{}"])
def test_an_id_file_that_is_none_is_replaced_by_the_next_writer(tmp_path: Path, content: bytes) -> None:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    (spool.folder / "spool_id").write_bytes(content)
    assert spool.identity() is None
    made = spool.identity(create=True)
    assert made is not None
    assert spool.identity() == made


def test_an_id_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    (spool.folder / "spool_id").mkdir()
    with pytest.raises(AuditError, match="spool_id cannot be read or made"):
        spool.identity(create=True)


def test_a_segment_is_sealed_when_it_is_an_hour_old(house: House) -> None:
    with house.trail() as trail:
        trail.emit("keys.generated", key_id="k1")
        house.clock.now += SEGMENT_AGE - timedelta(minutes=1)
        trail.emit("keys.generated", key_id="k2")
        assert house.spool.names("sealed") == []
        house.clock.now += timedelta(minutes=2)
        trail.emit("keys.generated", key_id="k3")
        assert len(house.spool.names("sealed")) == 1
    house.seal()
    assert house.verify().findings == []
