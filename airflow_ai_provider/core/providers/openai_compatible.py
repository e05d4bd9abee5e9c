"""OpenAI's chat completions over aiohttp, for every vendor and server that speaks them.

One request per attempt, and what became of it told apart exactly. Not billed is only what was refused (``base.py``)
and what never left: no name, no connection, no handshake. Whatever fails once there was a connection counts as sent.
That holds for a kept connection that the server closes as the request goes out, too: nothing tells a request that met
a closed door from one that was read, answered and lost. To make that rare, connections are kept for less time than
servers keep theirs.
"""

from __future__ import annotations

import asyncio
import io
import socket
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from multidict import MultiMapping
from yarl import URL

from airflow_ai_provider.core.errors import VendorError, VendorPermanentError, VendorTransientError
from airflow_ai_provider.core.providers import replies
from airflow_ai_provider.core.providers.base import MAX_ANSWER_BYTES, ModelReply, ModelRequest
from airflow_ai_provider.core.providers.parameters import ADAPTABLE, Adapting, Dialect, Structure
from airflow_ai_provider.core.providers.quotas import Headers
from airflow_ai_provider.core.providers.vendors import Address

_KEPT_SECONDS = 4.0
"""Below the shortest time in common use for which a server keeps an idle connection: 5 s, uvicorn's (vLLM, litellm)."""
_NAMES_SECONDS = 60
"""How long a host's addresses are remembered."""
_TIMEOUTS = 16
"""Kept to be used again."""
_WHOLE_BODY = 2**20
"""A larger body is written piece by piece, so that others are served in between."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class OpenAICompatibleProvider:
    """One deployment, with its own connections. For one event loop."""

    def __init__(self, name: str, address: Address, *, concurrency: int, answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._name = name
        self._address = address
        self._adapting = Adapting(name, Dialect(address.limit_name))
        self._structure = Structure(address.strict)
        self._url = URL(address.url, encoded=True)
        self._concurrency = concurrency
        self._answer_bytes = answer_bytes
        self._opened: aiohttp.ClientSession | None = None
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    async def complete(self, request: ModelRequest) -> ModelReply:
        dialect = self._adapting.dialect
        status, headers, content = await self._exchange(request, self._body(request, dialect))
        try:
            return self._reply(request, status, headers, content)
        except VendorError as error:
            failure = error
        if failure.kind in ADAPTABLE and not failure.billed:
            sent = {*self._address.params, *request.params, *self._structure.flags(request, dialect)}
            failure = self._adapting.learn(dialect, failure.http_status, content, sent) or failure
        raise failure

    def _reply(self, request: ModelRequest, status: int, headers: MultiMapping[str], content: bytes) -> ModelReply:
        """Raises ``VendorError`` where the vendor refused, or its answer cannot be read."""
        if replies.is_page(status, headers.get("content-type")):
            raise replies.wrong_address(self._name, status)
        if 200 <= status < 300:
            body = replies.parse(self._name, content)
            return replies.read_reply(self._name, body, _lookup(headers), messages=request.messages)
        raise replies.refused(self._name, status, replies.read_error(content), _lookup(headers))

    async def close(self) -> None:
        session, self._opened = self._opened, None
        if session is not None:
            await session.close()

    def _body(self, request: ModelRequest, dialect: Dialect) -> bytes:
        """The request as JSON. Written whole: joining what is the same in all requests with the rest takes longer."""
        with suppress(TypeError):
            params = dialect.kept({**self._address.params, **request.params})
            return orjson.dumps({**params, **self._rest(request, dialect)})
        raise VendorPermanentError(
            f"{self._name}: the request cannot be written as JSON in UTF-8; nothing was sent", kind="bad_request"
        )

    def _rest(self, request: ModelRequest, dialect: Dialect) -> dict[str, Any]:
        return {
            "model": self._address.model,
            "messages": request.messages,
            dialect.limit_name: request.max_tokens,
            **self._structure.of(request, dialect),
        }

    async def _exchange(self, request: ModelRequest, body: bytes) -> tuple[int, MultiMapping[str], bytes]:
        """Status, headers and content of the answer. aiohttp's own errors know the key: none is kept as a cause."""
        failure: VendorError
        try:
            async with self._session().post(
                self._url,
                data=body if len(body) < _WHOLE_BODY else io.BytesIO(body),
                headers={"Idempotency-Key": request.attempt_id},
                timeout=self._timeout(request.timeout),
                allow_redirects=False,
            ) as response:
                content = await _read(response.content, self._answer_bytes)
                if content is not None:
                    return response.status, response.headers, content
                response.close()
                failure = replies.oversized(self._name, self._answer_bytes)
        except Exception as error:  # noqa: BLE001 - whatever it was, it may have been charged
            failure = _failure(self._name, error)
        raise failure

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._concurrency, keepalive_timeout=_KEPT_SECONDS, ttl_dns_cache=_NAMES_SECONDS
                ),
                headers=self._address.headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self._address.url),
            )
        return self._opened

    def _timeout(self, seconds: float) -> aiohttp.ClientTimeout:
        """Half of the time for the connection: what is not connected by then was certainly not sent. To the moment:
        rounded up, as aiohttp would, an answer could cost more than the time that was held for."""
        known = self._timeouts.get(seconds)
        if known is None:
            known = aiohttp.ClientTimeout(total=seconds, connect=seconds / 2, ceil_threshold=seconds)
            if len(self._timeouts) < _TIMEOUTS:  # a deadline makes every one different
                self._timeouts[seconds] = known
        return known


def _lookup(headers: MultiMapping[str]) -> Headers:
    """A header by its name; several of one name are joined, as RFC 9110 has it."""

    def value(name: str) -> str | None:
        values = headers.getall(name, ())
        return values[0] if len(values) == 1 else ", ".join(values) if values else None

    return value


async def _read(stream: aiohttp.StreamReader, limit: int) -> bytes | None:
    """All of it, or ``None`` where it is more than ``limit`` bytes."""
    pieces, size = [], 0
    while piece := await stream.readany():
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _failure(name: str, error: Exception) -> VendorError:
    """What became of a request without a whole answer."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return replies.untrusted(name)
        case aiohttp.ClientConnectorDNSError() if error.os_error.errno == socket.EAI_NONAME:
            return replies.unknown_host(name)
        case aiohttp.ConnectionTimeoutError() | aiohttp.ClientConnectorError():
            return replies.not_connected(name)
        case aiohttp.ClientHttpProxyError():
            return replies.not_connected(name, f"the proxy answered HTTP {error.status}")
        case asyncio.TimeoutError():
            return replies.timed_out(name)
        case aiohttp.ClientResponseError():
            return replies.unreadable(name)
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
            return replies.lost(name)
        case _:
            message = f"{name}: {type(error).__name__} on the way to the vendor"
            return VendorTransientError(message, kind="unexplained", billed=True)


def _proxy(url: str) -> str | None:
    """The proxy that the environment (``HTTPS_PROXY``, ``NO_PROXY``) names for a URL. aiohttp would look it up anew for
    every request, in a thread."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in _LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
