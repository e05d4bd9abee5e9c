"""The archive in an S3 bucket, under Object Lock.

The first version of a name is the object; whatever is laid over it later, a version or a delete marker, changes nothing
that is read here and is told by ``overlays``. So an administrator who overwrites or deletes achieves nothing as long as
the lock holds, and is seen.

``put`` asks for the name to be free (``If-None-Match: *``), and then looks which version came first: stores that do
not hold that condition on versioned buckets (Ceph 16) accept two, and a delete marker makes a name look free to all.
Every request is tried anew when the store is busy or the connection breaks; a reading goes on where it stopped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, BinaryIO, Final

from airflow_ai_provider.core.audit.sinks.archive import Archive, Overlay
from airflow_ai_provider.core.audit.sinks.progress import TRIES, pause
from airflow_ai_provider.core.audit.trail.events import utc_now
from airflow_ai_provider.core.errors import AuditError, StoreUnavailable

LOCKS: Final = ("COMPLIANCE", "GOVERNANCE")
_RULE: Final = "airflow-ai-audit"
_BUSY: Final = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "BadDigest", "ConditionalRequestConflict"}
)
"""Codes that a later try may heal, whatever their HTTP status (S3 API reference, error responses)."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Object Lock of what is written: no one deletes a version before its time (COMPLIANCE), or only who holds
    ``s3:BypassGovernanceRetention`` (GOVERNANCE)."""

    mode: str
    days: int


@dataclass(frozen=True, slots=True)
class BucketState:
    """What the bucket itself promises."""

    bucket: str
    versioned: bool
    locked: bool
    """Object Lock is enabled."""
    default_retention: str
    """Such as ``COMPLIANCE 2555 days``; empty when the bucket has none."""
    expiring: tuple[str, ...]
    """Lifecycle rules that remove or hide objects under the prefix."""


@dataclass(frozen=True, slots=True)
class _Object:
    """What lies under one name."""

    name: str
    versions: tuple[Mapping[str, Any], ...]
    """Newest first."""
    markers: int

    @property
    def first(self) -> str | None:
        return self.versions[-1]["VersionId"] if self.versions else None

    def overlay(self) -> Overlay | None:
        """A second version of the same bytes is no overlay: it is a put whose reply was lost."""
        others = sum(1 for each in self.versions if each["ETag"] != self.versions[-1]["ETag"])
        return Overlay(self.name, others, self.markers) if others or self.markers else None


class _Taken(Exception):
    """412: the name is not free."""


class S3Archive(Archive):
    """Objects under ``prefix`` of a bucket. ``client`` is boto3's, best from ``s3_client``.

    ``AuditError`` where the bucket is not what was asked for or refuses; ``StoreUnavailable`` where it does not answer.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str = "",
        lock: Lock | None = None,
        *,
        page: int = 1000,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = client
        self._lock = lock
        self._page = page
        self._clock = clock
        self._sleep = sleep
        self._first: dict[str, str] = {}
        """First version by name. It never changes while the lock holds; a version that is gone is looked up again."""

    # -- the archive

    def put(self, name: str, data: bytes) -> bool:
        for attempt in range(1, TRIES + 1):
            if self._look_up(name) is not None:
                # A try whose reply was lost may have been the one that counted.
                return attempt > 1 and self.get(name) == data
            try:
                version = self._send(name, data)
            except StoreUnavailable:
                if attempt == TRIES:
                    raise
                self._sleep(pause(attempt))
            except _Taken:
                continue
            else:
                return self._look_up(name) == version
        raise StoreUnavailable(f"{self._place(name)}: is said to be taken and is not there; nothing was sealed")

    def open(self, name: str) -> BinaryIO:
        for fresh in (False, True):
            version = self._look_up(name) if fresh or name not in self._first else self._first[name]
            if version is None:
                break
            try:
                return io.BufferedReader(_Reading(self, name, version), 256 * 1024)
            except FileNotFoundError:
                self._first.pop(name, None)
        raise FileNotFoundError(name)

    def list(self, prefix: str) -> Iterator[str]:
        for each in self._objects(prefix):
            if each.first is not None:
                self._first[each.name] = each.first
                yield each.name

    def overlays(self, prefix: str) -> Iterator[Overlay]:
        found = (each.overlay() for each in self._objects(prefix))
        return (overlay for overlay in found if overlay is not None)

    # -- the bucket

    def check(self) -> BucketState:
        """What the bucket promises. ``AuditError`` when it cannot keep the lock that was asked for."""
        state = self.state()
        if self._lock is None:
            return state
        if not state.locked:
            raise AuditError(
                f"audit archive s3://{self.bucket}: the bucket has no Object Lock, and {self._lock.mode} was asked for;"
                " make a bucket with Object Lock enabled, or set archive_lock = none in section ai"
            )
        if not state.versioned:
            raise AuditError(f"audit archive s3://{self.bucket}: versioning is not enabled; enable it")
        return state

    def state(self) -> BucketState:
        """Read the bucket's own settings."""
        lock = self._setting("get_object_lock_configuration").get("ObjectLockConfiguration", {})
        versioning = self._setting("get_bucket_versioning")
        retention = lock.get("Rule", {}).get("DefaultRetention", {})
        span = f"{retention['Days']} days" if "Days" in retention else f"{retention.get('Years')} years"
        return BucketState(
            bucket=self.bucket,
            versioned=versioning.get("Status") == "Enabled",
            locked=lock.get("ObjectLockEnabled") == "Enabled",
            default_retention=f"{retention['Mode']} {span}" if retention.get("Mode") else "",
            expiring=tuple(rule["ID"] for rule in self._rules() if self._is_expiring(rule)),
        )

    def set_up(self, *, expire_days: int | None = None) -> BucketState:
        """Give the bucket the lock as its default, and the prefix a lifecycle rule; other rules stay as they are.

        The rule ends unfinished uploads, and with ``expire_days`` removes objects after so many days.
        ``AuditError`` where that is less than the lock.
        """
        self.check()
        if expire_days is not None and expire_days < (self._lock.days if self._lock else 1):
            raise AuditError(f"expire_days {expire_days}: less than the lock of {self._lock and self._lock.days} days")
        if self._lock is not None:
            retention = {"Mode": self._lock.mode, "Days": self._lock.days}
            setting = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}}
            self.ask("", "put_object_lock_configuration", ObjectLockConfiguration=setting)
        rules = [rule for rule in self._rules() if rule.get("ID") != _RULE]
        rules.append(self._rule(expire_days))
        self.ask("", "put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": rules})
        return self.state()

    def _rule(self, expire_days: int | None) -> dict[str, Any]:
        rule: dict[str, Any] = {
            "ID": _RULE,
            "Status": "Enabled",
            "Filter": {"Prefix": self.prefix},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
        }
        if expire_days is not None:
            rule |= {
                "Expiration": {"Days": expire_days},
                "NoncurrentVersionExpiration": {"NoncurrentDays": expire_days},
            }
        return rule

    def _rules(self) -> Sequence[dict[str, Any]]:
        rules: Sequence[dict[str, Any]] = self._setting("get_bucket_lifecycle_configuration").get("Rules", [])
        return rules

    def _is_expiring(self, rule: Mapping[str, Any]) -> bool:
        prefix = rule.get("Filter", {}).get("Prefix", rule.get("Prefix", "")) or ""
        touches = self.prefix.startswith(prefix) or prefix.startswith(self.prefix)
        removes = "NoncurrentVersionExpiration" in rule or "Days" in rule.get("Expiration", {})
        return rule.get("Status") == "Enabled" and touches and removes

    def _setting(self, operation: str) -> dict[str, Any]:
        """A setting of the bucket, empty where it has none."""
        try:
            return self.ask("", operation)
        except FileNotFoundError:
            return {}

    # -- requests

    def _send(self, name: str, data: bytes) -> str:
        """One put; the version that it made."""
        arguments: dict[str, Any] = {
            "Key": self.prefix + name,
            "Body": data,
            "ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            "IfNoneMatch": "*",
        }
        if self._lock is not None:
            until = self._clock() + timedelta(days=self._lock.days)
            arguments |= {"ObjectLockMode": self._lock.mode, "ObjectLockRetainUntilDate": until}
        version: str = self.ask(name, "put_object", tries=1, **arguments).get("VersionId", "null")
        return version

    def _look_up(self, name: str) -> str | None:
        """The first version of a name, from the bucket; ``None`` when there is none."""
        for each in self._objects(name):
            if each.name != name:
                break
            if each.first is not None:
                self._first[name] = each.first
                return each.first
        return None

    def _objects(self, prefix: str) -> Iterator[_Object]:
        for key, group in groupby(self._all_versions(self.prefix + prefix), key=lambda each: each["Key"]):
            found = list(group)
            versions = tuple(each for each in found if "ETag" in each)
            yield _Object(key.removeprefix(self.prefix), versions, len(found) - len(versions))

    def _all_versions(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Versions and delete markers by key, the versions of a key newest first."""
        place: dict[str, Any] = {}
        while True:
            page = self.ask(prefix, "list_object_versions", Prefix=prefix, MaxKeys=self._page, **place)
            found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            yield from sorted(found, key=lambda each: each["Key"])  # stable: versions stay in the store's order
            if not page.get("IsTruncated"):
                return
            place = {"KeyMarker": page["NextKeyMarker"]}
            if marker := page.get("NextVersionIdMarker"):
                place["VersionIdMarker"] = marker

    def ask(self, name: str, operation: str, *, tries: int = TRIES, **arguments: Any) -> dict[str, Any]:
        """One request and its answer."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        for attempt in range(1, tries + 1):
            try:
                answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self.bucket, **arguments)
            except (ClientError, BotoCoreError, ResponseParserError) as error:
                if not _may_heal(error):
                    raise self._refused(name, error) from None
                if attempt == tries:
                    raise StoreUnavailable(f"{self._place(name)}: the store does not answer ({_code(error)})") from None
                self._sleep(pause(attempt))
            else:
                return answer
        raise AssertionError  # the loop returns or raises

    def _refused(self, name: str, error: Exception) -> Exception:
        code = _code(error)
        if code in ("PreconditionFailed", "412"):
            return _Taken()
        if code == "NoSuchBucket":
            return AuditError(f"audit archive s3://{self.bucket}: no such bucket; make it, or mend archive_uri")
        if code in ("404", "NoSuchKey", "NoSuchVersion") or code.endswith("NotFoundError") or "NoSuch" in code:
            return FileNotFoundError(name)
        remedy = "check the connection's keys and rights" if code in _DENIED else "see the store's own log"
        return AuditError(f"{self._place(name)}: the store refuses ({code}); {remedy}")

    def _place(self, name: str) -> str:
        return f"audit archive s3://{self.bucket}/{self.prefix}{name.removeprefix(self.prefix)}"


_DENIED = frozenset({"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentialsError"})


class _Reading(io.RawIOBase):
    """One version, streamed; after a broken connection it is asked for from where it stopped."""

    def __init__(self, archive: S3Archive, name: str, version: str) -> None:
        self._archive = archive
        self._name = name
        self._version = version
        self._position = 0
        self._fetch()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for attempt in range(1, TRIES + 1):
            try:
                data = self._read(len(buffer))
            except _broken() as error:
                if attempt == TRIES:
                    raise StoreUnavailable(f"audit archive: {self._name} breaks off ({type(error).__name__})") from None
                self._archive._sleep(pause(attempt))
                self._fetch()
            else:
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
        raise AssertionError  # the loop returns or raises

    def _read(self, size: int) -> bytes:
        if self._position >= self._length:
            return b""
        data: bytes = self._body.read(size)
        if not data:
            raise ConnectionError("ends early")
        return data

    def _fetch(self) -> None:
        span: dict[str, Any] = {"Range": f"bytes={self._position}-"} if self._position else {}
        key = self._archive.prefix + self._name
        answer = self._archive.ask(self._name, "get_object", Key=key, VersionId=self._version, **span)
        self._body = answer["Body"]
        self._length = self._position + int(answer["ContentLength"])

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


def s3_client(options: Mapping[str, Any]) -> Any:
    """A boto3 client from the options fsspec takes: ``key``, ``secret``, ``token``, ``endpoint_url``,
    ``client_kwargs``. Without a key, boto3 finds credentials as it always does. ``AuditError`` without boto3."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise AuditError("an archive in S3 needs boto3; run pip install 'airflow-ai-provider[amazon]'") from None
    endpoint = options.get("endpoint_url")
    config = Config(
        # Tries are counted here. Checksum trailers are refused by older stores; Content-MD5 is sent instead.
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    return boto3.client(
        "s3",
        aws_access_key_id=options.get("key"),
        aws_secret_access_key=options.get("secret"),
        aws_session_token=options.get("token"),
        endpoint_url=endpoint,
        config=config,
        **options.get("client_kwargs", {}),
    )


def _code(error: Exception) -> str:
    response = getattr(error, "response", None)
    return str(response["Error"].get("Code", "")) if response else type(error).__name__


def _may_heal(error: Exception) -> bool:
    from botocore.exceptions import ConnectionError as NotConnected
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError

    response = getattr(error, "response", None)
    if not response:
        return isinstance(error, (NotConnected, HTTPClientError, ResponseParserError))
    status = int(response["ResponseMetadata"]["HTTPStatusCode"])
    return status >= 500 or status == 429 or response["Error"].get("Code") in _BUSY


def _broken() -> tuple[type[BaseException], ...]:
    """What boto3 and urllib3 raise while a body is read."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    return HTTPClientError, IncompleteReadError, HTTPError, ConnectionError, TimeoutError
