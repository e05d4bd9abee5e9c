"""A proxy that does to any HTTP service what networks and busy servers do: 503, no answer, an answer that gets lost."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

from support.web_server import WebThread

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares of all requests; of what is left, each goes through."""

    unavailable: float = 0.15
    """503, nothing was done."""
    dropped: float = 0.07
    """The connection ends before anything was done."""
    lost: float = 0.10
    """Everything was done, and the connection ends without a word of it."""


class FaultProxy(WebThread):
    """Stands before ``upstream``. Faults are dealt from ``seed``, in the order in which requests arrive."""

    def __init__(self, upstream: str, faults: Faults, seed: int = 1) -> None:
        super().__init__()
        self.faults = faults
        self.dealt: Counter[str] = Counter()
        self._upstream = upstream
        self._random = random.Random(seed)
        self._session: aiohttp.ClientSession | None = None

    async def opened(self) -> None:
        connector = aiohttp.TCPConnector(limit=64)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)

    async def closed(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect") == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.read()
        fault = self._deal()
        self.dealt[fault] += 1
        if fault == "unavailable":
            return web.Response(status=503, text="busy")
        response = web.Response() if fault == "dropped" else await self._forward(request, body)
        if fault in ("dropped", "lost") and request.transport is not None:
            request.transport.abort()
        return response

    def _deal(self) -> str:
        draw = self._random.random()
        for name in ("unavailable", "dropped", "lost"):
            share: float = getattr(self.faults, name)
            if draw < share:
                return name
            draw -= share
        return "through"

    async def _forward(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        assert self._session is not None
        decoded = _HOP | {"content-encoding"}  # by the server that this is; the answer is passed on as it came
        headers = {name: value for name, value in request.headers.items() if name.lower() not in decoded}
        # The path as it was sent and the Host it was sent to: both are in an S3 signature.
        target = URL(f"{self._upstream}{request.raw_path}", encoded=True)
        async with self._session.request(
            request.method, target, headers=headers, data=body or None, skip_auto_headers=("User-Agent", "Content-Type")
        ) as answer:
            content = await answer.read()
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            return web.Response(status=answer.status, headers=passed, body=content)
