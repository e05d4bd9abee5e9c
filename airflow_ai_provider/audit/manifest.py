"""A manifest: what one run of the sealer put into the archive, signed, and chained to the manifest before it.

The file is the canonical JSON of the manifest and its signature, so one set of values has one set of bytes. The
signature is Ed25519 over a tag and the canonical JSON without ``signature``; the manifest's hash, which the next
manifest and the pin hold, is SHA-256 of the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidSignature

from airflow_ai_provider.audit.canonical import canonical
from airflow_ai_provider.audit.events import format_time
from airflow_ai_provider.audit.keys import PublicKeys, SigningKey
from airflow_ai_provider.audit.merkle import leaf_hash, merkle_root
from airflow_ai_provider.errors import AuditError

VERSION: Final = 1
SIGNATURE_TAG: Final = b"airflow-ai audit manifest 1\0"
_OBJECT = re.compile(r"segments/\d{4}/\d\d/\d\d/[0-9a-z-]+\.jsonl\.gz", re.ASCII).fullmatch
NO_MANIFEST: Final = "0" * 64
"""Previous hash of the first manifest."""


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment as it went into the archive. Hashes are 64 hex digits."""

    name: str
    """Its object in the archive."""
    writer: str
    segment: int
    count: int
    """Records in it."""
    head: str
    """Chain value after its last record."""
    seal: str
    sha256: str
    """Of the segment, uncompressed."""
    stored_sha256: str
    """Of the object as stored."""

    def leaf(self) -> bytes:
        return leaf_hash(canonical(asdict(self)))


@dataclass(frozen=True, slots=True)
class Manifest:
    """The signed statement, without its signature."""

    trail: str
    sequence: int
    """From 1, without gaps."""
    previous: str
    """Hash of the manifest before."""
    created_at: str
    segments: tuple[SegmentEntry, ...]
    root: str
    """RFC 6962 Merkle root over ``segments`` in order."""
    key_id: str
    version: int = VERSION

    def body(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "trail": self.trail,
            "sequence": self.sequence,
            "previous": self.previous,
            "created_at": self.created_at,
            "segments": [asdict(entry) for entry in self.segments],
            "root": self.root,
            "key_id": self.key_id,
        }


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest read back from its bytes."""

    manifest: Manifest
    signature: str
    hash: str

    def is_signed_by(self, keys: PublicKeys) -> bool:
        """``KeyError`` when its key is not among ``keys``."""
        try:
            keys[self.manifest.key_id].verify(bytes.fromhex(self.signature), _signed_bytes(self.manifest))
        except InvalidSignature:
            return False
        return True


def segments_root(segments: Sequence[SegmentEntry]) -> str:
    return merkle_root([entry.leaf() for entry in segments]).hex()


def write_manifest(
    trail: str, sequence: int, previous: str, segments: Sequence[SegmentEntry], key: SigningKey, now: datetime
) -> bytes:
    """The bytes of a signed manifest."""
    manifest = Manifest(
        trail=trail,
        sequence=sequence,
        previous=previous,
        created_at=format_time(now),
        segments=tuple(segments),
        root=segments_root(segments),
        key_id=key.key_id,
    )
    signature = key.private.sign(_signed_bytes(manifest)).hex()
    return canonical({**manifest.body(), "signature": signature})


def read_manifest(data: bytes) -> SignedManifest:
    """Read a manifest's bytes; the signature is not checked here. ``AuditError`` says what is wrong with them."""
    try:
        document = orjson.loads(data)
        signature = document.pop("signature")
        segments = tuple(SegmentEntry(**_typed(entry, SegmentEntry)) for entry in document.pop("segments"))
        manifest = Manifest(**_typed(document, Manifest), segments=segments)
        bytes.fromhex(signature)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise AuditError("manifest cannot be read: it is not a manifest's JSON") from None
    for entry in segments:
        if not _OBJECT(entry.name):
            raise AuditError("manifest lists an object that is not a segment's")
    if manifest.version != VERSION:
        raise AuditError(f"manifest has version {manifest.version}; this program reads version {VERSION}")
    if canonical({**manifest.body(), "signature": signature}) != data:
        raise AuditError("manifest is not canonical JSON")
    return SignedManifest(manifest, signature, manifest_hash(data))


def manifest_hash(data: bytes) -> str:
    return sha256(data).hexdigest()


def _signed_bytes(manifest: Manifest) -> bytes:
    return SIGNATURE_TAG + canonical(manifest.body())


def _typed(document: dict[str, Any], kind: type) -> dict[str, Any]:
    """Hold field types to their annotations, all ``str`` or ``int``; names are held by the constructor."""
    for name, value in document.items():
        expected = int if kind.__annotations__[name] == "int" else str
        if type(value) is not expected:
            raise TypeError(name)
    return document
