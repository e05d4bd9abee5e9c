"""Signed manifests, and the Merkle trees over what they list.

The Merkle tree hash of RFC 6962, section 2.1: leaf ``H(0x00 ‖ data)``, node ``H(0x01 ‖ left ‖ right)``.

An inclusion path (section 2.1.1) shows that a leaf is under a root with a number of hashes that grows with the
logarithm of the leaves.

A manifest: what one run of the sealer put into the archive, signed, and chained to the manifest before it.

The file is the canonical JSON of the manifest and its signature, so one set of values has one set of bytes. What is
signed is a tag and the canonical JSON without ``segments`` and ``signature``: a short statement that holds the Merkle
root over the segments. An event is therefore proved by two paths, from the record to its segment's root and from the
segment to the manifest's, and by a signature, without the rest of the trail. The manifest's hash, which the next
manifest and the pin hold, is SHA-256 of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import orjson

from airflow_ai_provider.core.audit.sealing.signing import PublicKeys, Signer, is_signature, key_id
from airflow_ai_provider.core.audit.trail.chain import canonical
from airflow_ai_provider.core.audit.trail.events import format_time
from airflow_ai_provider.core.errors import AuditError


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


class MerkleTree:
    """A root over leaves that come one after the other; memory grows with the logarithm of their number."""

    __slots__ = ("_peaks", "count")

    def __init__(self) -> None:
        self.count = 0
        self._peaks: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Append a leaf hash."""
        self.count += 1
        number, node = self.count, leaf
        while not number & 1:
            node = sha256(b"\x01" + self._peaks.pop() + node).digest()
            number >>= 1
        self._peaks.append(node)

    def root(self) -> bytes:
        """Root of what was added; of nothing, the hash of nothing."""
        if not self._peaks:
            return sha256(b"").digest()
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = sha256(b"\x01" + peak + node).digest()
        return node


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaf hashes."""
    tree = MerkleTree()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from leaf ``index`` to the root, lowest first."""
    if len(leaves) == 1:
        return []
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < split:
        return [*inclusion_path(leaves[:split], index), merkle_root(leaves[split:])]
    return [*inclusion_path(leaves[split:], index - split), merkle_root(leaves[:split])]


def root_from_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a path leads to, or ``None`` where it does not fit the number of leaves (RFC 9162, 2.1.3.2)."""
    place, last, node = index, count - 1, leaf
    if not 0 <= place <= last:
        return None
    for beside in path:
        if last == 0:
            return None
        if place & 1 or place == last:
            node = sha256(b"\x01" + beside + node).digest()
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            node = sha256(b"\x01" + node + beside).digest()
        place, last = place >> 1, last >> 1
    return node if last == 0 else None


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
    records: str
    """RFC 6962 Merkle root over the bodies of its records."""

    def leaf(self) -> bytes:
        return leaf_hash(canonical(asdict(self)))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says, without its signature."""

    trail: str
    sequence: int
    """From 1, without gaps."""
    previous: str
    """Hash of the manifest before."""
    created_at: str
    segments: tuple[SegmentEntry, ...]
    root: str
    """RFC 6962 Merkle root over ``segments`` in order."""
    count: int
    """Segments under the root."""
    key_id: str
    version: int = VERSION

    def statement(self) -> dict[str, Any]:
        """The part that is signed."""
        return {
            "version": self.version,
            "trail": self.trail,
            "sequence": self.sequence,
            "previous": self.previous,
            "created_at": self.created_at,
            "count": self.count,
            "root": self.root,
            "key_id": self.key_id,
        }

    def document(self, signature: str) -> dict[str, Any]:
        """The whole file."""
        segments = [asdict(entry) for entry in self.segments]
        return {**self.statement(), "segments": segments, "signature": signature}

    @property
    def is_whole(self) -> bool:
        """Whether the segments listed are those under the signed root."""
        return self.count == len(self.segments) and self.root == segments_root(self.segments)


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest read back from its bytes."""

    manifest: Manifest
    signature: str
    hash: str

    def is_signed_by(self, keys: PublicKeys) -> bool:
        """``KeyError`` when its key is not among ``keys``."""
        key = keys[self.manifest.key_id]
        return is_signature(key, bytes.fromhex(self.signature), _signed_bytes(self.manifest))


def segments_root(segments: Sequence[SegmentEntry]) -> str:
    return merkle_root([entry.leaf() for entry in segments]).hex()


def write_manifest(
    trail: str, sequence: int, previous: str, segments: Sequence[SegmentEntry], signer: Signer, now: datetime
) -> bytes:
    """The bytes of a signed manifest."""
    manifest = Manifest(
        trail=trail,
        sequence=sequence,
        previous=previous,
        created_at=format_time(now),
        segments=tuple(segments),
        root=segments_root(segments),
        count=len(segments),
        key_id=key_id(signer.public),
    )
    return canonical(manifest.document(signer.sign(_signed_bytes(manifest)).hex()))


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
    if canonical(manifest.document(signature)) != data:
        raise AuditError("manifest is not canonical JSON")
    return SignedManifest(manifest, signature, manifest_hash(data))


def manifest_hash(data: bytes) -> str:
    return sha256(data).hexdigest()


def _signed_bytes(manifest: Manifest) -> bytes:
    return SIGNATURE_TAG + canonical(manifest.statement())


def _typed(document: dict[str, Any], kind: type) -> dict[str, Any]:
    """Hold field types to their annotations, all ``str`` or ``int``; names are held by the constructor."""
    for name, value in document.items():
        expected = int if kind.__annotations__[name] == "int" else str
        if type(value) is not expected:
            raise TypeError(name)
    return document
