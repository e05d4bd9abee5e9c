"""Read Markdown and text documents from a folder, local or in an object store.

The folder itself must be there and hold documents: anything else is a mistake in the DAG and stops it at once. One
unreadable file is not: it comes out as a ``BadDocument``, so that the others go on and its last good version stays
in the index.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.vectors.chunks import BlockKind, scan

MARKDOWN_SUFFIXES = (".md", ".markdown")
SUFFIXES = (*MARKDOWN_SUFFIXES, ".txt")
MAX_DOCUMENT_BYTES = 10_000_000
"""A larger file is data, not an article."""
MAX_DOC_ID_BYTES = 1024
"""The width of the collection's ``doc_id`` field."""

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.{0,16384}?\n)??---[ \t]*(?:\n|$)", re.DOTALL)
_METADATA_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MAX_METADATA_VALUE = 500


@dataclass(frozen=True, slots=True)
class Document:
    doc_id: str
    """Path relative to the folder, with ``/``: stable when the folder moves."""
    title: str
    text: str
    """The body, without front matter; line ends are ``\\n``."""
    sha256: str
    """Of the file's bytes, in hex: the document is indexed again when this changes."""
    uri: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Flat strings of the YAML front matter: ``language``, ``category``, …"""


@dataclass(frozen=True, slots=True)
class BadDocument:
    """A file that is there and cannot be used; ``reason`` says why and what to do."""

    doc_id: str
    uri: str
    reason: str


class _Unusable(Exception):
    """Why one file is a BadDocument; never leaves this module."""


def read_documents(uri: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[Document | BadDocument]:
    """Documents of a folder (recursive; ``*.md``, ``*.markdown``, ``*.txt``) or of one file, ordered by ``doc_id``.

    ``uri`` is a local path or an fsspec URL; hidden files and folders are left out. The folder is listed before this
    returns, the files are read one by one as the iterator goes. Raises SourceError when there is nothing to read.
    """
    fs, root = _open_filesystem(uri, storage_options)
    paths = _list(fs, root, uri)
    return (_read(fs, path, doc_id) for doc_id, path in sorted(paths.items()))


def parse_document(doc_id: str, raw: bytes, uri: str = "") -> Document | BadDocument:
    """The document that a file with these bytes holds."""
    try:
        text = _decode(raw)
        metadata, body = _split_front_matter(text)
        if not body.strip():
            raise _Unusable("the document is empty: write something below the front matter, or remove the file")
        if len(doc_id.encode()) > MAX_DOC_ID_BYTES:
            raise _Unusable(f"its path is longer than {MAX_DOC_ID_BYTES} bytes: shorten it")
    except _Unusable as unusable:
        return BadDocument(doc_id, uri, str(unusable))
    title = _title(doc_id, body, metadata)
    return Document(doc_id, title, body, hashlib.sha256(raw).hexdigest(), uri, metadata)


def _open_filesystem(uri: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(uri, **dict(storage_options or {}))
    except ImportError as missing:
        raise SourceError(
            f"documents at {_shown(uri)}: this kind of URL needs a package that is not installed ({missing}). "
            "For s3:// run: pip install 'airflow-ai-provider[amazon]'"
        ) from missing
    except (ValueError, OSError) as wrong:
        raise SourceError(f"documents at {_shown(uri)}: not a path or URL that can be opened ({wrong})") from wrong
    return fs, str(root)


def _list(fs: Any, root: str, uri: str) -> dict[str, str]:
    """doc_id → path."""
    try:
        if fs.isfile(root):
            return {PurePosixPath(root).name: root}
        found = [str(path) for path in fs.find(root)] if fs.exists(root) else None
    except OSError as refused:
        raise SourceError(
            f"documents at {_shown(uri)}: cannot be listed ({type(refused).__name__}: {refused}). Check the permissions"
        ) from refused
    if found is None:
        raise SourceError(f"documents at {_shown(uri)}: there is no such folder or file. Check the path")
    base = root.rstrip("/") + "/"
    paths = {path.removeprefix(base): path for path in found}
    wanted = {doc_id: path for doc_id, path in paths.items() if _is_document(doc_id)}
    if not wanted:
        raise SourceError(
            f"documents at {_shown(uri)}: no document among {len(found)} files. "
            f"Expected files ending in {', '.join(SUFFIXES)}, in this folder or below"
        )
    return wanted


def _is_document(doc_id: str) -> bool:
    path = PurePosixPath(doc_id)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _read(fs: Any, path: str, doc_id: str) -> Document | BadDocument:
    uri = str(fs.unstrip_protocol(path))
    try:
        with fs.open(path, "rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as refused:
        return BadDocument(doc_id, uri, f"cannot be read ({type(refused).__name__}): check that it is still there")
    if len(raw) > MAX_DOCUMENT_BYTES:
        reason = f"larger than {MAX_DOCUMENT_BYTES // 1_000_000} MB: split it into several documents"
        return BadDocument(doc_id, uri, reason)
    return parse_document(doc_id, raw, uri)


def _decode(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _Unusable("not UTF-8 (it looks like UTF-16): save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = raw.count(b"\n", 0, wrong.start) + 1
        raise _Unusable(f"not UTF-8 at line {line}, byte {wrong.start}: save it as UTF-8") from wrong
    if "\x00" in text:
        raise _Unusable("it holds NUL bytes, so it is no text: remove it from the folder or save it as text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """Metadata and body. What is not a mapping between two ``---`` lines is body."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    loaded = _load_yaml(match[1] or "")
    if not isinstance(loaded, dict):
        return {}, text
    metadata = {key: value[:_MAX_METADATA_VALUE] for key, value in loaded.items() if _is_flat(key, value)}
    return metadata, text[match.end() :]


def _load_yaml(text: str) -> object:
    """Scalars stay the strings they were written as: ``language: no`` is Norwegian, not False."""
    import yaml

    try:
        return yaml.BaseLoader(text).get_single_data()
    except yaml.YAMLError as wrong:
        mark = getattr(wrong, "problem_mark", None)
        where = f" at line {mark.line + 2}" if mark else ""
        raise _Unusable(f"its front matter is not valid YAML{where}: correct it, or put the value in quotes") from wrong


def _is_flat(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, str) and _METADATA_KEY.fullmatch(key) is not None


def _title(doc_id: str, body: str, metadata: Mapping[str, str]) -> str:
    """The first heading of level 1, else the front matter's title, else any first heading, else the file's name."""
    path = PurePosixPath(doc_id)
    is_markdown = path.suffix.lower() in MARKDOWN_SUFFIXES
    headings = [b for b in scan(body) if b.kind is BlockKind.HEADING and b.title] if is_markdown else []
    top = next((b.title for b in headings if b.level == 1), "")
    return top or metadata.get("title", "").strip() or (headings[0].title if headings else path.stem)


def _shown(uri: str) -> str:
    """``uri`` without user and password."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
