"""Images and files of a row: where they may come from, what they are, and how they reach the wire.

Nothing in an attachment can be masked, so everything here fails closed. A route names the kinds and the folders; a
path in a row leads nowhere else, by dots or by links. Contents are read twice, in small pieces off the event loop:
once for their hash, which stands in the request that names a stored answer, and once for the wire, just before the
call. So a batch holds no contents, and a file that changed in between is not sent under another one's name.

Messages of errors hold no URI: it is the row's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from airflow_ai_provider.core.errors import AIProviderError, PrivacyError, PromptError
from airflow_ai_provider.core.job import Message
from airflow_ai_provider.core.policy import Attachments as Allowed
from airflow_ai_provider.core.rows.filesystem import is_local, protocol_of, resolve, translated

_PIECE = 1 << 20
"""Bytes read at once."""
_AT_ONCE = 8
"""Attachments being read at the same time, over all batches of a job."""
_PLAIN_PATH = re.compile(r"(?:[^%]|%(?!2[eEfF]|5[cC]))*")
"""Of a web address: a server may read an encoded dot or slash as one."""
_WEB = frozenset({"http", "https"})
_SIGNS: Mapping[str, tuple[tuple[bytes, int, bytes, str], ...]] = {
    "image": (
        (b"\x89PNG\r\n\x1a\n", 0, b"", "image/png"),
        (b"\xff\xd8\xff", 0, b"", "image/jpeg"),
        (b"GIF87a", 0, b"", "image/gif"),
        (b"GIF89a", 0, b"", "image/gif"),
        (b"RIFF", 8, b"WEBP", "image/webp"),
    ),
    "file": ((b"%PDF-", 0, b"", "application/pdf"),),
}
"""By kind: first bytes, further bytes and where they stand, media type (the formats' own specifications)."""
_EXPECTED = {"image": "a PNG, JPEG, GIF or WebP", "file": "a PDF"}

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attachment of one row, that may be read."""

    kind: str
    label: str
    """As messages of errors call it: ``image 1``."""
    uri: str = field(repr=False)
    roots: Sequence[str] = field(repr=False)
    """The places of the route, of which the path must not leave the one it is in."""


@dataclass(frozen=True, slots=True)
class _Digest:
    sha256: str
    media_type: str


class AttachmentReader:
    """Reads the attachments of one job."""

    def __init__(self, allowed: Allowed | None, storage_options: Mapping[str, Any] | None = None) -> None:
        self._allowed = allowed
        self._options = dict(storage_options or {})
        self._limit = (allowed.max_mb if allowed else 0) * 1_000_000
        self._places = asyncio.Semaphore(_AT_ONCE)

    def check_kinds(self, kinds: Sequence[str]) -> None:
        """Raises ``PrivacyError`` where the route lets a kind not out."""
        allowed = self._allowed.kinds if self._allowed else ()
        if missing := [kind for kind in kinds if kind not in allowed]:
            wanted = ", ".join(dict.fromkeys((*allowed, *missing)))
            raise PrivacyError(
                f"the route lets no {missing[0]} out, since nothing in it can be masked; the owner of the policy "
                f"may add to the route attachments: {{kinds: [{wanted}], from: [FOLDER]}}"
            )

    def refer(self, kind: str, uri: str, label: str, unmasked: Callable[[str], bool]) -> Attachment | dict[str, Any]:
        """What a URI of a row stands for: an attachment to read, or the part that goes on the wire for a web address.

        ``unmasked`` says whether masking leaves a text as it is. Nothing is read. Raises ``PrivacyError`` for what may
        not be sent, ``PromptError`` for what cannot.
        """
        self.check_kinds([kind])
        assert self._allowed is not None
        roots = [root for root in self._allowed.from_ if _within(uri, root)]
        if not roots:
            raise PrivacyError(
                f"{label}: it is in none of the places that the route lets attachments out of; expected an absolute "
                "path or URL, without .., in a place under attachments: from"
            )
        if protocol_of(uri) not in _WEB:
            return Attachment(kind, label, uri, roots)
        if kind != "image":
            raise PromptError(f"{label}: only images are passed on by web address; give a path or object-store URL")
        if not unmasked(uri):
            raise PrivacyError(f"{label}: its address holds a personal value or a secret, and is not sent")
        return {"type": "image_url", "image_url": {"url": uri}}

    async def hashed(self, attachment: Attachment) -> dict[str, Any]:
        """What stands for the content in a message. Raises ``PromptError`` or ``PrivacyError``."""
        digest = await self._off_the_loop(partial(self._digest, attachment))
        return {"type": attachment.kind, "media_type": digest.media_type, "sha256": digest.sha256}

    async def inlined(self, attachment: Attachment, part: Mapping[str, Any]) -> dict[str, Any]:
        """The part as it goes on the wire. Raises ``PromptError`` or ``PrivacyError``; nothing was sent then."""
        url = await self._off_the_loop(partial(self._data_url, attachment, part))
        if attachment.kind == "image":
            return {"type": "image_url", "image_url": {"url": url}}
        # Its own name may be personal.
        return {"type": "file", "file": {"file_data": url, "filename": f"{attachment.label.replace(' ', '-')}.pdf"}}

    async def _off_the_loop(self, read: Callable[[], _Result]) -> _Result:
        async with self._places:
            return await asyncio.to_thread(read)

    def _digest(self, attachment: Attachment) -> _Digest:
        made, media_type = hashlib.sha256(), None
        for piece in self._pieces(attachment):
            media_type = media_type or _media_type(attachment, piece)
            made.update(piece)
        return _Digest(made.hexdigest(), media_type or _media_type(attachment, b""))

    def _data_url(self, attachment: Attachment, part: Mapping[str, Any]) -> str:
        content = b"".join(self._pieces(attachment))
        if hashlib.sha256(content).hexdigest() != part["sha256"]:
            raise PromptError(f"{attachment.label}: it changed while its row was under way")
        return f"data:{part['media_type']};base64,{base64.b64encode(content).decode('ascii')}"

    def _pieces(self, attachment: Attachment) -> Iterator[bytes]:
        """The content, no more than the limit of it, and never less than a whole signature in the first piece."""
        left = self._limit
        with self._opened(attachment) as file:
            while piece := _wrapped(attachment, partial(file.read, _PIECE)):
                left -= len(piece)
                if left < 0:
                    raise PromptError(f"{attachment.label}: larger than the {self._limit // 1_000_000} MB of the route")
                yield piece

    def _opened(self, attachment: Attachment) -> BinaryIO:
        return _wrapped(attachment, partial(self._open, attachment))

    def _open(self, attachment: Attachment) -> BinaryIO:
        # Resolved by the policy's place, not the row's URI: messages of its errors name what they are given.
        filesystem, _ = resolve(attachment.roots[0], self._options, error=PromptError)
        path = filesystem._strip_protocol(attachment.uri)
        if is_local(filesystem):
            return _open_local(path, [filesystem._strip_protocol(root) for root in attachment.roots])
        opened: BinaryIO = filesystem.open(path, "rb")
        return opened


def references(messages: Sequence[Message]) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """(message, part, the part itself) of every image and file."""
    for number, message in enumerate(messages):
        if not isinstance(message["content"], str):
            for index, part in enumerate(message["content"]):
                if part["type"] in ("image", "file") and "file" not in part:
                    yield number, index, part


def with_parts(messages: Sequence[Message], parts: Mapping[tuple[int, int], Mapping[str, Any]]) -> Sequence[Message]:
    """The messages with other parts in the given places."""
    made: list[dict[str, Any]] = [dict(message) for message in messages]
    for (number, index), part in parts.items():
        content = list(made[number]["content"])
        content[index] = part
        made[number]["content"] = content
    return made


def _within(uri: str, root: str) -> bool:
    """Whether a URI, read by its letters alone, lies below a place."""
    if not uri.isprintable() or "\\" in uri or "::" in uri:
        return False
    protocol, rest = _split(uri)
    root_protocol, root_rest = _split(root)
    if protocol != root_protocol or not rest.startswith(f"{root_rest}/"):
        return False
    if protocol in _WEB:
        parts = urlsplit(uri)
        return _PLAIN_PATH.fullmatch(parts.path) is not None and not _dotted(parts.path)
    return not _dotted(rest)


def _split(uri: str) -> tuple[str, str]:
    """Protocol and the rest; of web addresses with the host in small letters."""
    protocol = protocol_of(uri)
    rest = uri.split("://", 1)[1] if "://" in uri else uri
    if protocol in _WEB:
        host, slash, path = rest.partition("/")
        rest = host.lower() + slash + path
    return protocol, rest


def _dotted(path: str) -> bool:
    return not {".", ".."}.isdisjoint(path.split("/"))


def _open_local(path: str, roots: Sequence[str]) -> BinaryIO:
    """A regular file that lies, all links followed, below one of the folders."""
    real = os.path.realpath(path)
    if not any(real.startswith(f"{os.path.realpath(root).rstrip('/')}/") for root in roots):
        raise PrivacyError("a link leads out of the places that the route lets attachments out of")
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PromptError("no regular file")
    return os.fdopen(descriptor, "rb")


def _media_type(attachment: Attachment, head: bytes) -> str:
    for start, offset, more, media_type in _SIGNS[attachment.kind]:
        if head.startswith(start) and head[offset : offset + len(more)] == more:
            return media_type
    raise PromptError(f"{attachment.label}: not {_EXPECTED[attachment.kind]}, by its first bytes")


def _wrapped(attachment: Attachment, action: Callable[[], _Result]) -> _Result:
    """Run an action on a file; what fails is said without its path."""
    label = attachment.label
    try:
        with translated("the file", PromptError):
            return action()
    except PrivacyError as error:
        problem: AIProviderError = PrivacyError(f"{label}: {error}")
    except AIProviderError as error:
        reason = "no such file" if isinstance(error.__cause__, FileNotFoundError) else str(error)
        problem = PromptError(f"{label}: {reason.removeprefix('the file: ')}")
    except Exception as error:  # noqa: BLE001 - a storage library's own, whose message may hold the path
        problem = PromptError(f"{label}: cannot be read ({type(error).__name__})")
    raise problem
