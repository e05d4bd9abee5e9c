"""What this host saw last, to notice a change: one small file for each thing that is watched."""

from __future__ import annotations

import os
import secrets
from hashlib import sha256
from pathlib import Path

from airflow_ai_provider.errors import AuditError


def last_seen(folder: Path, name: str) -> str | None:
    """The digest last remembered under a name."""
    try:
        return _path(folder, name).read_text(encoding="ascii").strip() or None
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise AuditError(f"{_path(folder, name)} cannot be read: {error.strerror}") from error


def remember(folder: Path, name: str, digest: str) -> None:
    """Remember a digest under a name, whole or not at all."""
    path = _path(folder, name)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(digest, encoding="ascii")
        os.replace(temporary, path)
    except OSError as error:
        raise AuditError(f"{path} cannot be written: {error.strerror}") from error


def _path(folder: Path, name: str) -> Path:
    return folder / sha256(name.encode()).hexdigest()[:16]
