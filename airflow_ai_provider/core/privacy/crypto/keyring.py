"""The keys of an installation: one secret per key id, and every key in use derived from it for its purpose.

Invariants: a secret is never shown, and never used itself, only keys derived from it (HKDF-SHA256, RFC 5869); a
keyring file is never readable by anyone but its owner, from its first byte; processes that start together on an
empty home agree on one keyring; a keyring file is whole whenever a process dies.

Rotation adds a key and makes it ``active``; the old ones stay, so that what they protect can still be read.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from airflow_ai_provider.core.errors import KeyringError

_SECRET_BYTES = 32
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Keyring:
    """Secrets by key id, one of them active. Use ``open`` or ``from_mapping``."""

    __slots__ = ("_derive", "_secrets", "active", "created")

    def __init__(
        self, active: str, secrets_by_id: Mapping[str, bytes], created: Mapping[str, str] | None = None
    ) -> None:
        self.active = active
        """Id of the key that protects what is written now."""
        self.created = dict(created or {})
        """When a key was made, ISO 8601, by id; keys that do not say are left out."""
        self._secrets = dict(secrets_by_id)
        self._derive = lru_cache(maxsize=1024)(self._derive_uncached)

    @classmethod
    def open(cls, path: Path, *, create: bool = True) -> Keyring:
        """Load the keyring file, or create it with one fresh key if it is absent.

        Raises ``KeyringError`` if the file is readable by others, is not a keyring, cannot be read or written, or is
        absent and not to be created.
        """
        with _translated(path):
            if create and not path.exists():
                _create(path, fresh_keyring())
            return cls._from_json(_read_private(path), str(path))

    @classmethod
    def rotate(cls, path: Path, announce: Callable[[str], None] | None = None) -> Keyring:
        """Add a fresh key to the keyring file, make it the active one, and return the new keyring.

        Atomic and durable: a process that dies on the way leaves the old file, and of two that rotate at once each
        adds its key. ``announce`` gets the new key's id before anything is changed, and may refuse by raising. Raises
        ``KeyringError``.
        """
        with _translated(path), _locked_folder(path.parent):
            content = _read_private(path)
            cls._from_json(content, str(path))
            changed = with_fresh_key(json.loads(content))
            if announce is not None:
                announce(changed["active"])
            _replace(path, changed)
        return cls._from_mapping(changed, str(path))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Keyring:
        """Read a keyring that is kept elsewhere, such as a secrets backend: the same structure as the file's JSON."""
        return cls._from_mapping(data, "keyring")

    @classmethod
    def _from_json(cls, content: bytes, place: str) -> Keyring:
        try:
            data = json.loads(content)
        except ValueError:
            data = None  # the decoder's error quotes the document
        if not isinstance(data, dict):
            raise KeyringError(f"{place}: expected a JSON object; restore the file from its backup")
        return cls._from_mapping(data, place)

    @classmethod
    def _from_mapping(cls, data: Mapping[str, Any], place: str) -> Keyring:
        if data.get("version") != 1:
            raise KeyringError(f"{place}: expected version 1; a newer release of this package may be needed")
        keys = data.get("keys")
        if not isinstance(keys, Mapping) or not keys:
            raise KeyringError(f'{place}: expected "keys", an object with at least one key')
        secrets_by_id = {str(key_id): _secret(key_id, entry, place) for key_id, entry in keys.items()}
        created = {str(key_id): entry["created"] for key_id, entry in keys.items() if "created" in entry}
        active = data.get("active")
        if not isinstance(active, str) or active not in secrets_by_id:
            raise KeyringError(
                f'{place}: expected "active" to be one of the key ids {", ".join(sorted(secrets_by_id))}'
            )
        return cls(active, secrets_by_id, created)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of all keys, in the order of the file."""
        return tuple(self._secrets)

    def derive(self, purpose: str, context: str = "", *, key_id: str | None = None, length: int = 32) -> bytes:
        """Return ``length`` bytes bound to a purpose and a context, from the key ``key_id`` (default: the active one).

        Equal arguments give equal bytes in every process. Raises ``KeyringError`` for an unknown ``key_id``.
        """
        return self._derive(purpose, context, self.active if key_id is None else key_id, length)

    def fingerprints(self) -> dict[str, str]:
        """A fingerprint of each key by its id, 32 hex digits: it tells keys apart and says nothing of them."""
        return {key_id: self.derive("fingerprint", key_id=key_id, length=16).hex() for key_id in self._secrets}

    def _derive_uncached(self, purpose: str, context: str, key_id: str, length: int) -> bytes:
        secret = self._secrets.get(key_id)
        if secret is None:
            raise KeyringError(
                f"key {key_id!r} is not in the keyring (it has {', '.join(self._secrets)}): "
                "restore the keyring that held it"
            )
        # The length of the purpose keeps ("a", "bc") apart from ("ab", "c").
        encoded = purpose.encode()
        info = b"airflow-ai/1\0" + len(encoded).to_bytes(4, "big") + encoded + context.encode()
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)

    def __repr__(self) -> str:
        return f"Keyring(active={self.active!r}, key_ids={self.key_ids!r})"

    def __reduce__(self) -> str:
        raise TypeError("a keyring is not pickled: it would carry its secrets; open it where it is needed")


def open_keyring(content: Mapping[str, Any] | None, home: Path, *, create: bool = True) -> Keyring:
    """The keyring of an installation: ``content`` as a connection holds it, or the file in ``home``.

    Raises ``KeyringError``.
    """
    return Keyring.from_mapping(content) if content else Keyring.open(home / "keyring.json", create=create)


def fresh_keyring() -> dict[str, Any]:
    """The contents of a new keyring, with one key."""
    return with_fresh_key({"version": 1, "keys": {}})


def with_fresh_key(content: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a keyring with one more key, the active one."""
    key_id = "k" + secrets.token_hex(4)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    secret = base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")
    return {**content, "active": key_id, "keys": {**content["keys"], key_id: {"secret": secret, "created": created}}}


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Write a keyring to a new file of mode 0600. Raises ``KeyringError``, also where there is a file already."""
    with _translated(path):
        if not _create(path, content):
            raise KeyringError(f"{path}: exists already; name a new file")


def _secret(key_id: object, entry: object, place: str) -> bytes:
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise KeyringError(f"{place}: expected key ids of 1 to 64 letters, digits, hyphens or underscores")
    encoded = entry.get("secret") if isinstance(entry, Mapping) else None
    secret = b""
    if isinstance(encoded, str):
        try:
            secret = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            secret = b""
    if len(secret) != _SECRET_BYTES:
        raise KeyringError(f'{place}: key {key_id!r}: expected "secret" to be base64 of {_SECRET_BYTES} bytes')
    return secret


def _create(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a keyring, unless there is one, or another process writes one first: then theirs stands."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _temporary(path, content) as temporary:
        try:
            os.link(temporary, path)  # fails if the file exists, unlike a rename
        except FileExistsError:
            return False
        _sync_folder(path.parent)
    return True


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    with _temporary(path, content) as temporary:
        os.replace(temporary, path)
        _sync_folder(path.parent)


@contextmanager
def _temporary(path: Path, content: Mapping[str, Any]) -> Iterator[Path]:
    """A durable file of mode 0600 beside ``path``, gone at the end if it has not been renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """One rotation at a time. The folder is locked, since the file itself is replaced by another."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeyringError(
            f"keyring {path}: {error.strerror or type(error).__name__}: expected a file of this user, or a folder "
            "where it can be created"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name durable: what is encrypted with a key must not outlive it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_private(path: Path) -> bytes:
    """Read a file, having checked that what was opened is private to its owner."""
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise KeyringError(
                f"keyring {path}: mode {mode:04o} lets others read or change it: expected 0600. Run: chmod 600 {path}, "
                "and rotate its keys if others could have read it"
            )
        return file.read()
