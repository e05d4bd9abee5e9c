"""The thin layer over fsspec: where a URI leads, how a file appears whole, and what its errors mean.

Two invariants. A file written here is complete or absent: local files are renamed into place after an fsync,
object stores get one put. And no error of a storage library leaves this package: what retrying cannot heal
becomes ``SourceError`` or ``SinkError``, what it can heal becomes ``StoreUnavailable``.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from airflow_ai_provider.core.errors import PermanentError, SourceError, StoreUnavailable

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"})
"""Protocols whose single put is atomic: an object is there whole or not at all."""

EXTRAS = {
    "s3": "pip install 'airflow-ai-provider[amazon]'",
    "s3a": "pip install 'airflow-ai-provider[amazon]'",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "abfs": "pip install adlfs",
    "abfss": "pip install adlfs",
    "az": "pip install adlfs",
}

_TRANSIENT_ERRNO = frozenset({errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EIO)})
"""What s3fs gives for 409, 500 and 503 (``s3fs.errors``), and the system for a store that does not answer."""

_VENDOR_ERRORS = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "gcsfs.retry": ("HttpError",),
    "azure.core.exceptions": ("AzureError",),
}
_TRANSIENT_VENDOR_NAMES = frozenset({"HTTPClientError", "ConnectionError", "ClientError", "HttpError", "AzureError"})


def shown(uri: str) -> str:
    """The URI as it may stand in a message: without user name and password."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def protocol_of(uri: str) -> str:
    """``s3`` of ``s3://bucket/key``; ``file`` of a bare path."""
    return uri.split("://", 1)[0].lower() if "://" in uri else "file"


def resolve(
    uri: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    error: type[PermanentError] = SourceError,
) -> tuple[Any, str]:
    """The file system of a URI and the path in it. Local paths take no storage options and may begin with ``~``.

    Raises ``error`` for an unknown protocol, a missing library, or an empty path.
    """
    protocol = protocol_of(uri)
    if not uri or "::" in uri:
        raise error(f"{shown(uri)!r}: expected a path or one URL such as s3://bucket/folder")
    if protocol in ("file", "local"):
        path = uri.split("://", 1)[-1]
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        with translated(uri, error):
            filesystem, path = fsspec.core.url_to_fs(uri, **dict(storage_options or {}))
    except ValueError as exc:
        expected = "a path, file://, s3:// or another fsspec URL"
        raise error(f"{shown(uri)}: unknown protocol or malformed URL; expected {expected}") from exc
    if not path.strip("/"):
        raise error(f"{shown(uri)}: names no file or folder; expected {protocol}://bucket/path")
    return filesystem, path.rstrip("/")


@contextmanager
def translated(uri: str, error: type[PermanentError]) -> Iterator[None]:
    """Turn what a storage library raises into this package's errors, with the place and the remedy."""
    place = shown(uri)
    try:
        yield
    except FileNotFoundError as exc:
        remedy = "check the path, and that the task that writes it has run" if error is SourceError else "make it first"
        raise error(f"{place}: does not exist; {remedy}") from exc
    except PermissionError as exc:
        raise error(f"{place}: access denied; check the credentials and rights of the connection") from exc
    except (ConnectionError, TimeoutError) as exc:
        raise StoreUnavailable(f"{place}: the store does not answer; try again") from exc
    except ImportError as exc:
        remedy = EXTRAS.get(protocol_of(uri), "pip install the fsspec library for it")
        raise error(f"{place}: the library for {protocol_of(uri)}:// is not installed; run {remedy}") from exc
    except _vendor_errors() as exc:
        raise _vendor_translation(place, exc, error) from exc
    except (FileExistsError, NotADirectoryError) as exc:
        raise error(f"{place}: a file is in the place of a folder; choose another path") from exc
    except OSError as exc:
        if exc.errno in _TRANSIENT_ERRNO:
            raise StoreUnavailable(f"{place}: the store is busy; try again") from exc
        raise error(f"{place}: {os.strerror(exc.errno) if exc.errno else type(exc).__name__}") from exc


def _vendor_errors() -> tuple[type[BaseException], ...]:
    """Error bases of the storage libraries that are loaded; nothing is imported for the sake of an except clause."""
    loaded = ((sys.modules[module], names) for module, names in _VENDOR_ERRORS.items() if module in sys.modules)
    return tuple(getattr(module, name) for module, names in loaded for name in names)


def _vendor_translation(place: str, exc: BaseException, error: type[PermanentError]) -> Exception:
    if any(base.__name__ in _TRANSIENT_VENDOR_NAMES for base in type(exc).__mro__):
        return StoreUnavailable(f"{place}: the store cannot be reached ({type(exc).__name__}); try again")
    return error(f"{place}: {type(exc).__name__}; check the credentials and settings of the connection")


def is_local(filesystem: Any) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def is_object_store(filesystem: Any) -> bool:
    protocols = filesystem.protocol
    return not OBJECT_STORES.isdisjoint([protocols] if isinstance(protocols, str) else protocols)


def list_folder(filesystem: Any, path: str) -> list[Mapping[str, Any]]:
    """Entries of a folder (``name``, ``size``, ``type``), sorted by name, read anew; none if it does not exist."""
    filesystem.invalidate_cache()
    try:
        entries = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return []
    # An object store may list the folder's own marker among its entries.
    inside = (entry for entry in entries if entry["name"].rstrip("/") != path)
    return sorted(inside, key=lambda entry: str(entry["name"]))


def name_of(path: str) -> str:
    return PurePosixPath(path).name


def write_atomic(filesystem: Any, path: str, data: bytes) -> None:
    """Write a small file: complete or absent for every reader, and durable on return."""
    if is_object_store(filesystem):
        filesystem.pipe_file(path, data)
        return
    with open_atomic(filesystem, path) as file:
        file.write(data)


@contextmanager
def open_atomic(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """A file to write to that appears under its name only if the block ends without an error."""
    if is_local(filesystem):
        opener = _local(path)
    elif is_object_store(filesystem):
        opener = _deferred(filesystem, path)
    else:
        opener = _moved(filesystem, path)
    with opener as file:
        yield file


def temporary_name(path: str) -> str:
    """A hidden name beside ``path``: readers of the folder pass it over."""
    return f"{PurePosixPath(path).parent}/.{name_of(path)}.{uuid.uuid4().hex}.tmp"


@contextmanager
def _local(path: str) -> Iterator[BinaryIO]:
    temporary = temporary_name(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def _sync_folder(path: str) -> None:
    """Make a rename survive a power cut: the new name lives in the folder's own blocks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _deferred(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """A multi-part upload that is completed at the end, or thrown away."""
    file = filesystem.open(path, "wb", autocommit=False)
    try:
        yield file
        file.close()
    except BaseException:
        file.discard()
        raise
    file.commit()


@contextmanager
def _moved(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """Stores with folders and a rename (sftp, hdfs, memory): written beside, then moved."""
    temporary = temporary_name(path)
    try:
        with filesystem.open(temporary, "wb") as file:
            yield file
        filesystem.mv(temporary, path)
    except BaseException:
        if filesystem.exists(temporary):
            filesystem.rm_file(temporary)
        raise
