"""The archive in S3: the same promises as in a folder, and Object Lock against whoever owns the bucket."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.audit import House
from support.s3 import S3Store

from airflow_ai_provider.core.audit.sinks.archive import Archive, FolderArchive
from airflow_ai_provider.core.audit.sinks.s3_archive import Lock, S3Archive, s3_client
from airflow_ai_provider.errors import AuditError, StoreUnavailable

LOCK = Lock("COMPLIANCE", 30)


@pytest.fixture(scope="module")
def client(s3: S3Store) -> Any:
    return s3_client(s3.options)


@pytest.fixture
def bucket(client: Any) -> str:
    """A bucket with Object Lock."""
    name = f"locked-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


@pytest.fixture
def plain_bucket(client: Any) -> str:
    name = f"plain-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def locked(client: Any, bucket: str) -> S3Archive:
    return S3Archive(client, bucket, "trail/one", LOCK)


@pytest.fixture(params=["folder", "s3", "s3 locked"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """One behaviour, every archive."""
    if request.param == "folder":
        return FolderArchive(tmp_path / "archive")
    if request.param == "s3 locked":
        return request.getfixturevalue("locked")
    return S3Archive(request.getfixturevalue("client"), request.getfixturevalue("plain_bucket"), "trail")


@dataclass
class HouseWith(House):
    """A trail whose archive is elsewhere."""

    elsewhere: Archive = field(kw_only=True)

    @property
    def archive(self) -> Archive:  # type: ignore[override]
        return self.elsewhere


def needs_real(s3: S3Store) -> None:
    if not s3.real:
        pytest.skip("Ceph's gateway is not installed, and moto does not enforce Object Lock")


def versions(client: Any, archive: S3Archive, name: str) -> list[str]:
    """Version ids of a name, newest first."""
    found = client.list_object_versions(Bucket=archive.bucket, Prefix=archive.prefix + name)
    return [each["VersionId"] for each in found["Versions"]]


# What every archive does


def test_put_get_list(archive: Archive) -> None:
    assert list(archive.list("segments/")) == []
    assert archive.put("segments/2025/03/01/b.gz", b"b")
    assert archive.put("segments/2025/03/01/a.gz", b"a")
    assert archive.put("manifests/1.json", b"m" * 1_000_000)
    assert list(archive.list("segments/")) == ["segments/2025/03/01/a.gz", "segments/2025/03/01/b.gz"]
    assert archive.get("segments/2025/03/01/a.gz") == b"a"
    assert archive.get("manifests/1.json") == b"m" * 1_000_000
    assert list(archive.overlays("")) == []


def test_a_name_is_written_once(archive: Archive) -> None:
    assert archive.put("a", b"first")
    assert not archive.put("a", b"second")
    assert not archive.put("a", b"first")
    assert archive.get("a") == b"first"
    with pytest.raises(FileNotFoundError):
        archive.get("b")


def test_of_racing_puts_one_wins_whole(archive: Archive) -> None:
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda n: archive.put("deep/er/a", bytes([n]) * 10_000), range(8)))
    assert wins.count(True) == 1
    assert archive.get("deep/er/a") == bytes([wins.index(True)]) * 10_000


def test_a_trail_seals_and_verifies_there(archive: Archive, tmp_path: Path) -> None:
    house = HouseWith(tmp_path / "house", elsewhere=archive)
    house.write(20)
    for _ in range(2):
        house.seal()
    report = house.verify()
    assert (report.status, report.findings, report.manifests, report.events) == (0, [], 2, 20)


def test_a_reading_that_breaks_off_goes_on_where_it_stopped(client: Any, plain_bucket: str) -> None:
    content = secrets.token_bytes(1_000_000)
    broken = BrokenClient(client)
    archive = S3Archive(broken, plain_bucket, sleep=lambda seconds: None)
    archive.put("a", content)
    assert archive.get("a") == content
    assert broken.ranges == [None, "bytes=262144-", "bytes=524288-", "bytes=786432-"]
    with archive.open("a") as stream:
        assert stream.read(10) == content[:10]


class BrokenClient:
    """A client of a real store whose connections end after 256 KiB of an object."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.ranges: list[str | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **arguments: Any) -> Any:
        self.ranges.append(arguments.get("Range"))
        answer = self._client.get_object(**arguments)
        return {**answer, "Body": BrokenBody(answer["Body"])}


class BrokenBody:
    def __init__(self, body: Any) -> None:
        self._body = body
        self._left = 2**18

    def read(self, size: int) -> bytes:
        if self._left == 0:
            raise ConnectionResetError
        data: bytes = self._body.read(min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._body.close()


# Object Lock


def test_what_is_written_is_locked(client: Any, locked: S3Archive) -> None:
    locked.put("a", b"evidence")
    (version,) = versions(client, locked, "a")
    head = client.head_object(Bucket=locked.bucket, Key=f"{locked.prefix}a", VersionId=version)
    assert head["ObjectLockMode"] == "COMPLIANCE"
    left = head["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)


def test_a_locked_version_cannot_be_deleted_nor_its_lock_shortened(s3: S3Store, client: Any, locked: S3Archive) -> None:
    needs_real(s3)
    locked.put("a", b"evidence")
    (version,) = versions(client, locked, "a")
    where = {"Bucket": locked.bucket, "Key": f"{locked.prefix}a", "VersionId": version}
    attacks = [
        lambda: client.delete_object(**where),
        lambda: client.delete_object(**where, BypassGovernanceRetention=True),
        lambda: client.put_object_retention(
            **where, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(seconds=5)}
        ),
        lambda: client.put_bucket_versioning(Bucket=locked.bucket, VersioningConfiguration={"Status": "Suspended"}),
    ]
    for attack in attacks:
        with pytest.raises(client.exceptions.ClientError) as refused:
            attack()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 409)
    assert locked.get("a") == b"evidence"


def test_overwriting_and_deleting_a_sealed_segment_is_harmless_and_seen(
    client: Any, locked: S3Archive, tmp_path: Path
) -> None:
    house = HouseWith(tmp_path / "house", elsewhere=locked)
    house.write(5)
    house.write(5)
    house.seal()
    first, second = locked.list("segments/")
    client.put_object(Bucket=locked.bucket, Key=locked.prefix + first, Body=b"another story")
    client.delete_object(Bucket=locked.bucket, Key=locked.prefix + second)
    client.delete_object(Bucket=locked.bucket, Key=f"{locked.prefix}manifests/000000000001.json")

    fresh = S3Archive(client, locked.bucket, "trail/one", LOCK)  # nothing remembered from before
    house.elsewhere = fresh
    report = house.verify()
    assert (report.status, report.findings, report.events) == (0, [], 10)
    assert not fresh.put(second, b"a put over the delete marker")
    assert [(each.name, each.versions, each.markers) for each in fresh.overlays("")] == [
        ("manifests/000000000001.json", 0, 1),
        (first, 1, 0),
        (second, 0, 1),
    ]


def test_of_many_versions_the_first_is_read(client: Any, locked: S3Archive) -> None:
    """More than one page of them: an attacker cannot bury the first."""
    locked.put("a", b"evidence")
    locked.put("ab", b"a neighbour")
    for number in range(7):
        client.put_object(Bucket=locked.bucket, Key=f"{locked.prefix}a", Body=bytes([number]))
    fresh = S3Archive(client, locked.bucket, "trail/one", page=3)
    assert fresh.get("a") == b"evidence"
    assert list(fresh.list("")) == ["a", "ab"]


def test_a_bucket_without_object_lock_is_refused_when_a_lock_is_asked_for(client: Any, plain_bucket: str) -> None:
    with pytest.raises(AuditError, match="has no Object Lock, and COMPLIANCE was asked for; make a bucket with"):
        S3Archive(client, plain_bucket, lock=LOCK).check()
    assert not S3Archive(client, plain_bucket).check().locked


def test_a_bucket_that_is_not_there_and_keys_that_are_wrong_are_told(s3: S3Store, client: Any, bucket: str) -> None:
    missing = S3Archive(client, "no-such-bucket-anywhere")
    for act in (missing.check, lambda: missing.put("a", b""), lambda: list(missing.list(""))):
        with pytest.raises(AuditError, match="s3://no-such-bucket-anywhere: no such bucket"):
            act()
    needs_real(s3)
    wrong = S3Archive(s3_client({**s3.options, "secret": "wrong"}), bucket)
    with pytest.raises(AuditError, match=r"refuses .SignatureDoesNotMatch.; check the connection's keys and rights"):
        wrong.put("a", b"")


def test_a_store_that_is_down_is_transient() -> None:
    slept: list[float] = []
    client = s3_client({"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StoreUnavailable, match=r"s3://b/p/a: the store does not answer .EndpointConnectionError."):
        S3Archive(client, "b", "p", sleep=slept.append).put("a", b"")
    assert len(slept) == 7
    assert slept == sorted(slept)


# The bucket's own settings


def test_set_up_gives_the_bucket_its_default_lock_and_keeps_the_rules_of_others(client: Any, locked: S3Archive) -> None:
    other = {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
    client.put_bucket_lifecycle_configuration(Bucket=locked.bucket, LifecycleConfiguration={"Rules": [other]})
    for _ in range(2):
        state = locked.set_up()
        assert (state.locked, state.versioned, state.default_retention) == (True, True, "COMPLIANCE 30 days")
        assert state.expiring == ()
    rules = client.get_bucket_lifecycle_configuration(Bucket=locked.bucket)["Rules"]
    assert {rule["ID"] for rule in rules} == {"logs", "airflow-ai-audit"}


def test_expiry_is_possible_only_after_the_lock(client: Any, locked: S3Archive) -> None:
    with pytest.raises(AuditError, match="expire_days 29: less than the lock of 30 days"):
        locked.set_up(expire_days=29)
    assert locked.set_up(expire_days=31).expiring == ("airflow-ai-audit",)


def test_rules_of_others_that_would_remove_the_trail_are_named(client: Any, locked: S3Archive) -> None:
    tidy = {
        "ID": "tidy",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    }
    client.put_bucket_lifecycle_configuration(Bucket=locked.bucket, LifecycleConfiguration={"Rules": [tidy]})
    assert locked.state().expiring == ("tidy",)
