"""The Milvus Lite folders that this process has open.

Milvus Lite is a library that serves one folder to one process at a time, under a file lock. So whoever comes second
waits a bounded time for its turn, and letting go is explicit: ``MilvusClient.close`` alone keeps the lock until the
process ends. Inside one process any number of stores share the one server of a folder; the last one stops it.

One Milvus, opened for a while: Milvus Lite in a local folder, or a server by its URL.

Milvus Lite serves one folder to one process at a time, so a store is opened late and closed early.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from airflow_ai_provider.core.errors import AIProviderError, PolicyError, StoreUnavailable
from airflow_ai_provider.core.vectors.collection import (
    SPARSE_FIELD,
    STORED_FIELDS,
    Row,
    create_collection,
    validate_collection,
)

_START_ATTEMPTS = 3
"""A start may fail once because another process just looked whether the folder is free."""


class LiteServers:
    """Counts the stores of each folder."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._users: dict[Path, int] = {}

    def acquire(self, path: Path, wait_seconds: float) -> str:
        """Address of the server for ``path``, started if need be."""
        deadline = time.monotonic() + wait_seconds
        pause, refusals = 0.05, 0
        while True:
            locked = self._is_foreign(path)
            if not locked and (uri := self._start(path)) is not None:
                return uri
            refusals += not locked
            if refusals >= _START_ATTEMPTS:
                raise StoreUnavailable(
                    f"vector store {path}: Milvus Lite could not start on this folder; the log above says why"
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise StoreUnavailable(
                    f"vector store {path}: another process has it open (waited {wait_seconds:g} s). Milvus Lite "
                    "serves one process at a time: let that process finish, or for several processes run "
                    f"`milvus-lite server --data-dir {path} --host 127.0.0.1 --port 19530` or a Milvus server "
                    "and use its http:// address"
                )
            time.sleep(min(pause, left))
            pause = min(pause * 2, 1.0)

    def _is_foreign(self, path: Path) -> bool:
        with self._guard:
            return path not in self._users and _is_locked(path)

    def _start(self, path: Path) -> str | None:
        """None when Milvus Lite refuses: another process was quicker, or the folder is damaged."""
        from milvus_lite.server_manager import server_manager_instance

        with self._guard:
            uri: str | None = server_manager_instance.start_and_get_uri(str(path))
            if uri is not None:
                self._users[path] = self._users.get(path, 0) + 1
            return uri

    def release(self, path: Path) -> None:
        from milvus_lite.server_manager import server_manager_instance

        with self._guard:
            self._users[path] -= 1
            if self._users[path] == 0:
                del self._users[path]
                server_manager_instance.release_server(str(path))


lite_servers = LiteServers()


def _is_locked(path: Path) -> bool:
    """Whether a process holds Milvus Lite's LOCK. Asked first: a refused Milvus Lite logs a traceback."""
    import fcntl

    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "LOCK", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as refused:
        if path.is_file():
            raise PolicyError(
                f"vector store {path}: expected a folder and found a file, perhaps made by Milvus Lite 2. "
                "Name another path; the next sync fills it"
            ) from refused
        raise StoreUnavailable(
            f"vector store {path}: cannot be written ({type(refused).__name__}). Check the folder's permissions"
        ) from refused
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


LITE_SUFFIX = ".db"
"""Plain ``MilvusClient(path)`` takes a path for Milvus Lite only with this ending; we keep to it."""
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 120.0
_PAGE = 1000
"""Rows per request when a collection is read; far below gRPC's message limit at the longest chunks."""
_DELETE_BATCH = 500

_INVALID_CODES = {6, 1100, 1101}
"""Milvus' IllegalArgument (old and new) and wrong-format codes: asking again will not help."""


class MilvusStore:
    """``with MilvusStore(uri) as store:`` where ``uri`` is a path, ``file://…`` or ``http(s)://…``.

    A path that does not end in ``.db`` is a folder, and Milvus Lite's data goes into ``milvus.db`` inside it.
    ``wait_seconds`` bounds the wait for another process to let go of the folder. Opening raises StoreUnavailable, or
    PolicyError when waiting cannot help (no such kind of URL, a package that is missing).
    """

    def __init__(self, uri: str | Path, token: str | None = None, *, wait_seconds: float = 30.0) -> None:
        self._server_uri, self._path = _resolve(str(uri))
        self._token = token
        self._wait_seconds = wait_seconds
        self._client: Any = None
        self._is_lite = self._path is not None
        self._loaded: set[str] = set()

    @property
    def place(self) -> str:
        """The path or the server's address, for messages: never holds a user or a password."""
        if self._path is not None:
            return str(self._path)
        parts = urlsplit(self._server_uri)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def is_lite(self) -> bool:
        """Whether Milvus Lite does the work, in this process or behind ``milvus-lite server``."""
        return self._is_lite

    def __enter__(self) -> Self:
        client_class = _import_client(lite=self._path is not None)
        uri = self._server_uri if self._path is None else lite_servers.acquire(self._path, self._wait_seconds)
        try:
            with self._errors("cannot be opened"):
                # A proxy in the environment is for the way out, not for a server in this process.
                options = {"grpc.enable_http_proxy": 0} if self._path is not None else {}
                self._client = client_class(
                    uri=uri, token=self._token or "", timeout=CONNECT_TIMEOUT_S, grpc_options=options
                )
                self._is_lite = "lite" in str(self._client.get_server_version()).lower()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        client, self._client = self._client, None
        self._loaded.clear()
        try:
            if client is not None:
                client.close()
        finally:
            if self._path is not None:
                lite_servers.release(self._path)

    def has_collection(self, collection: str) -> bool:
        validate_collection(collection)
        with self._errors(f"cannot tell whether collection {collection} exists"):
            return bool(self._open().has_collection(collection))

    def ensure_collection(self, collection: str) -> None:
        """Create the collection, or check that the one there is ours. Raises PolicyError when it is not."""
        if not self.has_collection(collection):
            with self._errors(f"cannot create collection {collection}"):
                create_collection(self._open(), collection)
            return
        with self._errors(f"cannot describe collection {collection}"):
            found = {field["name"] for field in self._open().describe_collection(collection)["fields"]}
        if not found >= {*STORED_FIELDS, SPARSE_FIELD}:
            raise PolicyError(
                f"collection {collection} at {self.place} was made by something else: its fields are "
                f"{', '.join(sorted(found))}. Use another collection name, or drop it"
            )

    def drop_collection(self, collection: str) -> None:
        """Does nothing when there is none."""
        validate_collection(collection)
        self._loaded.discard(collection)
        with self._errors(f"cannot drop collection {collection}"):
            self._open().drop_collection(collection)

    def rows(self, collection: str, fields: Sequence[str]) -> Iterator[Row]:
        """These fields of all rows, in no particular order. Write nothing to the collection meanwhile."""
        validate_collection(collection)
        with self._errors(f"cannot read collection {collection}"):
            if self._is_lite:
                # Its iterator logs a warning at each use: it has no snapshots. One process, one answer will do.
                yield from self._load(collection).query(collection, filter='chunk_id != ""', output_fields=list(fields))
                return
            pages = self._load(collection).query_iterator(
                collection, batch_size=_PAGE, output_fields=list(fields), consistency_level="Strong"
            )
            try:
                while page := pages.next():
                    yield from page
            finally:
                pages.close()

    def get(self, collection: str, chunk_ids: Sequence[str], fields: Sequence[str]) -> list[Row]:
        """These fields of the rows with these primary keys."""
        validate_collection(collection)
        with self._errors(f"cannot read collection {collection}"):
            return list(self._load(collection).get(collection, ids=list(chunk_ids), output_fields=list(fields)))

    def upsert(self, collection: str, rows: Sequence[Row]) -> None:
        """Write rows; those with a known primary key are replaced."""
        validate_collection(collection)
        if rows:
            with self._errors(f"cannot write to collection {collection}"):
                self._open().upsert(collection, list(rows), timeout=REQUEST_TIMEOUT_S)

    def delete(self, collection: str, chunk_ids: Sequence[str]) -> None:
        validate_collection(collection)
        with self._errors(f"cannot delete in collection {collection}"):
            for at in range(0, len(chunk_ids), _DELETE_BATCH):
                batch = list(chunk_ids[at : at + _DELETE_BATCH])
                self._open().delete(collection, ids=batch, timeout=REQUEST_TIMEOUT_S)

    def flush(self, collection: str) -> None:
        """Seal what was written: from here on it is indexed once, not at every search."""
        validate_collection(collection)
        with self._errors(f"cannot flush collection {collection}"):
            self._open().flush(collection, timeout=REQUEST_TIMEOUT_S)

    def search(
        self, collection: str, queries: Sequence[str], *, top_k: int, fields: Sequence[str], expression: str = ""
    ) -> list[list[tuple[float, Row]]]:
        """One request of BM25 queries (already cut into terms): (score > 0, fields) per hit, best first."""
        validate_collection(collection)
        with self._errors(f"cannot search collection {collection}"):
            answer = self._load(collection).search(
                collection,
                data=list(queries),
                anns_field=SPARSE_FIELD,
                limit=top_k,
                filter=expression,
                output_fields=list(fields),
                search_params={"metric_type": "BM25"},
                timeout=REQUEST_TIMEOUT_S,
            )
        # Milvus Lite reports BM25 as a distance, below zero; a server as a score, above. The order is the same.
        return [[(abs(float(hit["distance"])), dict(hit["entity"])) for hit in hits] for hits in answer]

    def _load(self, collection: str) -> Any:
        """The client, with the collection loaded: nothing can be read from it before that."""
        client = self._open()
        if collection not in self._loaded:
            client.load_collection(collection, timeout=REQUEST_TIMEOUT_S)
            self._loaded.add(collection)
        return client

    def _open(self) -> Any:
        if self._client is None:
            raise StoreUnavailable(f"the vector store at {self.place} is not open: use it inside `with`")
        return self._client

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Milvus' and gRPC's exceptions become ours, with the place in the message."""
        from grpc import RpcError
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except AIProviderError:
            raise
        except MilvusException as error:
            message = f"vector store {self.place}: {what}: {str(error.message)[:300]}"
            if error.code in _INVALID_CODES:
                raise PolicyError(message) from error
            raise StoreUnavailable(message) from error
        except (RpcError, OSError) as error:
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            raise StoreUnavailable(f"vector store {self.place}: {what}: {reason}. Is Milvus running?") from error


def _resolve(uri: str) -> tuple[str, Path | None]:
    """(server's URL, None) or ("", folder of Milvus Lite)."""
    if uri.startswith(("http://", "https://", "tcp://", "unix:")):
        return uri, None
    if "://" in uri and not uri.startswith("file://"):
        raise PolicyError(
            f"vector store {uri.partition('://')[0]}://…: expected a local path for Milvus Lite, "
            "or http(s)://host:19530 for a server"
        )
    path = Path(uri.removeprefix("file://")).expanduser().resolve()
    return "", path if path.suffix == LITE_SUFFIX else path / f"milvus{LITE_SUFFIX}"


def _import_client(*, lite: bool) -> Any:
    try:
        from pymilvus import MilvusClient

        if lite:
            import milvus_lite.server_manager  # noqa: F401
    except ImportError as missing:
        raise PolicyError(
            f"the vector store needs a package that is not installed ({missing}). "
            "Run: pip install 'airflow-ai-provider[milvus]'"
        ) from missing
    return MilvusClient
