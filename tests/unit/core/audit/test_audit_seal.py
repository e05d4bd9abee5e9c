"""The sealer: everything once, whenever it is killed."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import sha256
from typing import Any

import orjson
import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.audit import House, MemoryStore, emit_calls, overwrite

from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import public_keys
from airflow_ai_provider.core.audit.sinks.archive import Archive, FolderArchive
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.errors import AuditError, StoreUnavailable


def archived_ids(house: House) -> list[str]:
    """Event ids in the segments that manifests list, in order, as often as they are listed."""
    ids = []
    for path in house.objects("manifests"):
        for entry in orjson.loads(path.read_bytes())["segments"]:
            lines = gzip.decompress(house.archive.get(entry["name"])).splitlines()
            ids += [orjson.loads(line)["event.id"] for line in lines[1:-1]]
    return ids


def test_sealed_segments_move_to_the_archive(house: House) -> None:
    ids = house.write(5) + house.write(3)
    report = house.seal()
    assert (report.sequence, report.segments, report.events, report.refused) == (1, 2, 8, ())
    assert house.spool.names("sealed") == []
    assert sorted(archived_ids(house)) == sorted(ids)
    assert {path.parent for path in house.objects("segments")} == {house.root / "archive/segments/2025/03/01"}
    assert house.store.pinned[1].manifest_hash == sha256(house.objects("manifests")[0].read_bytes()).hexdigest()
    verdict = house.verify()
    assert (verdict.status, verdict.findings, verdict.notes) == (0, [], [])
    assert (verdict.manifests, verdict.segments, verdict.events) == (1, 2, 8)


def test_a_manifest_can_be_verified_with_nothing_but_the_standards(house: House) -> None:
    house.write(2)
    house.seal()
    document = orjson.loads(house.objects("manifests")[0].read_bytes())
    signature = bytes.fromhex(document.pop("signature"))
    segments = document.pop("segments")
    (public,) = public_keys(house.key).values()
    public.verify(signature, b"airflow-ai audit manifest 1\0" + rfc8785.dumps(document))
    (entry,) = segments
    assert document["root"] == sha256(b"\0" + rfc8785.dumps(entry)).hexdigest()
    assert sha256(house.objects("segments")[0].read_bytes()).hexdigest() == entry["stored_sha256"]


def test_silence_is_signed_too(house: House) -> None:
    assert [house.seal().sequence for _ in range(3)] == [1, 2, 3]
    report = house.verify()
    assert (report.status, report.manifests) == (0, 3)


def test_one_sealer_at_a_time(house: House) -> None:
    house.write(1)
    with house.store.sealer_lock("main"):
        assert house.seal().sequence is None
    assert len(house.spool.names("sealed")) == 1
    assert house.seal().segments == 1


def test_an_open_segment_waits(house: House) -> None:
    with house.trail() as trail:
        emit_calls(trail, 2)
        trail.flush()
        assert house.seal().segments == 0
        report = house.verify()
        assert (report.status, [note.kind for note in report.notes]) == (0, ["segment_open"])


def test_the_sealing_itself_is_an_event(house: House) -> None:
    house.write(1)
    report = house.seal()
    with house.trail() as trail:
        trail.emit("trail.sealed", "ok", **report.fields())
    house.seal()
    assert house.verify().events == 2


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Kills at the n-th tick."""

    def __init__(self, ticks: int) -> None:
        self.left = ticks

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class FragileArchive(Archive):
    def __init__(self, inner: Archive, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def put(self, name: str, data: bytes) -> bool:
        self._fuse.tick()
        stored = self._inner.put(name, data)
        self._fuse.tick()
        return stored

    def open(self, name: str) -> Any:
        return self._inner.open(name)

    def list(self, prefix: str) -> Iterator[str]:
        return self._inner.list(prefix)


class FragileStore(MemoryStore):
    fuse: Fuse

    def pin_manifest(self, trail: str, sequence: int, manifest_hash: str, pinned_at: datetime) -> None:
        self.fuse.tick()
        super().pin_manifest(trail, sequence, manifest_hash, pinned_at)
        self.fuse.tick()


def seal_and_die(house: House, ticks: int) -> bool:
    """Whether the sealer was killed at its n-th effect."""
    fuse = Fuse(ticks)
    store = FragileStore(house.store.registered, house.store.pinned)
    store.fuse = fuse
    try:
        seal_trail(house.spool, FragileArchive(house.archive, fuse), store, house.key, house.clock())
    except Killed:
        return True
    return False


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_anywhere_any_number_of_times(tmp_path_factory: pytest.TempPathFactory, deaths: list[int]) -> None:
    """Each kill is followed by a verification without findings and by a sealer that carries on."""
    house = House(tmp_path_factory.mktemp("house"))
    ids = house.write(2) + house.write(3)
    for ticks in deaths:
        seal_and_die(house, ticks)
        assert house.verify().findings == []
        ids += house.write(1)
    house.seal()
    report = house.verify()
    assert (report.findings, report.notes) == ([], [])
    assert Counter(archived_ids(house)) == Counter(ids)


def test_every_step_was_killed_once(house: House) -> None:
    """Two puts and a pin for one segment: six places to die, and the seventh is past the end."""
    for ticks in range(1, 7):
        house.write(1)
        if len(house.spool.names("sealed")) == 1:
            assert seal_and_die(house, ticks), ticks
        house.seal()
    house.write(1)
    assert not seal_and_die(house, 7)


def test_a_segment_with_a_broken_chain_is_refused_and_holds_up_nobody(house: House) -> None:
    house.write(3)
    (bad,) = house.spool.names("sealed")
    house.write(2)
    path = house.spool.path(bad, "sealed")
    path.write_bytes(path.read_bytes().replace(b"small", b"SMALL", 1))
    report = house.seal()
    assert (report.segments, [refusal.segment for refusal in report.refused]) == (1, [bad])
    assert "record 1" in report.refused[0].reason
    assert path.exists()
    assert [finding.place for finding in house.verify().findings] == [f"spool {bad}.sealed: record 1"]


def test_a_segment_that_clashes_with_an_archived_one_is_refused(house: House) -> None:
    house.write(3)
    (name,) = house.spool.names("sealed")
    other = house.copy(house.root.parent / "other")
    house.seal()
    path = house.spool.path(name, "sealed")
    path.write_bytes(other.spool.path(name, "sealed").read_bytes())
    again = house.seal()
    assert (again.segments, again.refused, path.exists()) == (0, (), False)
    target = house.objects("segments")[0]
    path.write_bytes(other.spool.path(name, "sealed").read_bytes())
    overwrite(target, target.read_bytes()[:-1])
    assert "holds other bytes" in house.seal().refused[0].reason


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda house: house.objects("manifests")[-1].unlink(), "newest pinned is 2"),
        (lambda house: house.store.pinned.clear(), "newest pinned is 0"),
        (lambda house: overwrite(house.objects("manifests")[-1], b"{}"), "manifest 2"),
        (
            lambda house: overwrite(house.objects("manifests")[-1], house.objects("manifests")[0].read_bytes()),
            "manifest 2 is not the one that was pinned",
        ),
    ],
)
def test_nothing_is_sealed_onto_a_changed_trail(house: House, damage: Callable[[House], None], message: str) -> None:
    house.write(1)
    house.seal()
    house.seal()
    house.write(1)
    damage(house)
    before = sorted(house.objects(""))
    with pytest.raises(AuditError, match=message):
        house.seal()
    assert sorted(house.objects("")) == before


def test_an_unpinned_manifest_of_another_key_is_not_pinned(house: House, tmp_path: Any) -> None:
    house.seal()
    thief = house.copy(tmp_path / "thief")
    (thief.root / "keys" / "signing_key.pem").unlink()
    thief.seal()
    forged = thief.objects("manifests")[-1]
    (house.root / "archive/manifests" / forged.name).write_bytes(forged.read_bytes())
    with pytest.raises(AuditError, match="not this sealer's"):
        house.seal()


class LyingArchive(FolderArchive):
    def get(self, name: str) -> bytes:
        return super().get(name)[:-3]


def test_what_reads_back_differently_is_not_signed(house: House) -> None:
    house.write(1)
    with pytest.raises(StoreUnavailable, match="other bytes"):
        seal_trail(house.spool, LyingArchive(house.root / "archive"), house.store, house.key, house.clock())
    assert house.spool.names("sealed")
    assert not house.store.pinned


def test_verify_says_when_it_could_not_run(house: House, tmp_path: Any) -> None:
    house.write(1)
    house.seal()
    assert verify(house.archive, house.spool, house.store, {}).status == 2
    (tmp_path / "file").write_text("")
    report = verify(FolderArchive(tmp_path / "file"), house.spool, house.store, public_keys(house.key))
    assert (report.status, "cannot be listed" in report.error) == (2, True)


def test_without_a_store_verify_says_what_it_did_not_check(house: House) -> None:
    house.write(1)
    house.seal()
    report = verify(house.archive, house.spool, None, public_keys(house.key))
    assert (report.status, [note.kind for note in report.notes]) == (0, ["store_absent"])
