"""The double's HTTP server: reads as the life of one request.

    receive ─▶ refuse? ─▶ replay? ─▶ over a limit? ─▶ fault? ─▶ wait ─▶ answer ─▶ charge ─▶ send

Invariants: a request is charged exactly when its answer was made; its invoice line is written before the first
byte of the answer is sent; the same idempotency key is charged once, also when its requests overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from airflow_ai_provider.testing import answers, wire
from airflow_ai_provider.testing.behaviour import (
    MARKER,
    OK,
    Behaviour,
    Draw,
    Fault,
    RawAnswer,
    draw_for,
    fault_at,
    forced_by,
)
from airflow_ai_provider.testing.invoice import Invoice, InvoiceLine, Usage, price_list
from airflow_ai_provider.testing.journal import Journal, ReceivedRequest, Stats
from airflow_ai_provider.testing.lag import LagMeter
from airflow_ai_provider.testing.limits import Quotas

HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 * 2**20
REMEMBERED_ANSWERS = 50_000
"""Answers kept for idempotency keys; the oldest go first."""
LOOK_S = 0.05
"""How often a hanging request looks whether its client has left."""
TRICKLES = 20
FLOOD_BYTES = 256 * 2**10
_PATHS = {"/v1/chat/completions": answers.CHAT, "/v1/embeddings": answers.EMBEDDINGS}


@dataclass(frozen=True, slots=True)
class Produced:
    """An answer that was made and charged."""

    request_id: str
    body: bytes
    content_type: str
    asked: bytes
    """The request's body: the same idempotency key with another one is refused."""


@dataclass(slots=True)
class Call:
    """One model request on its way through."""

    request: web.BaseRequest
    endpoint: str
    raw: bytes
    received: ReceivedRequest
    request_id: str
    draw: Draw
    number: int
    """Counted by the journal, from 1."""
    tries: int
    """How often this very body met a fault before."""
    fault: Fault | None = None
    raw_answer: RawAnswer | None = None
    outcome: str = OK
    """What this try was dealt, by name."""

    @property
    def body(self) -> Any:
        return self.received.body

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def client_has_left(self) -> bool:
        return self.request.transport is None


class VendorServer:
    """State and rules of one double. ``open`` and ``close`` may be repeated; what it knows stays."""

    def __init__(self, behaviour: Behaviour, invoice_file: Path | None, requests_file: Path | None) -> None:
        self.invoice = Invoice(invoice_file)
        self.journal = Journal(requests_file)
        self._runner: web.ServerRunner | None = None
        self._closing = asyncio.Event()
        self._changed = asyncio.Event()
        self._take_over(behaviour)
        self._script = deque(behaviour.script)
        self._quotas = Quotas(behaviour.limits)
        self._lag = LagMeter()
        self._in_the_making: dict[str, asyncio.Event] = {}
        self.forget()

    # -- set and asked from outside

    def behave(self, changes: Mapping[str, Any]) -> None:
        """Change settings; requests already on their way keep what they were dealt. Raises ``ValueError``."""
        self._take_over(self.behaviour.changed(changes))
        if "script" in changes:
            self._script = deque(self.behaviour.script)
        if "limits" in changes:
            self._quotas = Quotas(self.behaviour.limits)

    def _take_over(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._odds = behaviour.faults.odds()
        self._prices = price_list(behaviour.prices)
        self._changed.set()
        self._changed = asyncio.Event()

    def forget(self) -> None:
        """Empty the invoice, the journal, the counts and the remembered answers. Files keep what they hold."""
        self.invoice.reset()
        self.journal.reset()
        self._lag.reset()
        self._tries: dict[int, int] = {}
        self._answers: OrderedDict[str, Produced] = OrderedDict()
        for key in list(self._in_the_making):
            self._let_others_at(key)

    def stats(self) -> Stats:
        return Stats(
            requests=self.journal.received,
            in_flight=self.journal.in_flight,
            max_in_flight=self.journal.max_in_flight,
            outcomes=dict(self.journal.outcomes),
            billed=len(self.invoice),
            cost_nanodollars=self.invoice.total_nanodollars,
            lag_p99_s=self._lag.seconds(0.99),
            lag_max_s=self._lag.seconds(1.0),
        )

    async def open(self, port: int) -> int:
        """Listen on the loopback ``port`` (0: any free one) and return it."""
        self._closing = asyncio.Event()
        self._lag.start()
        server = web.Server(self._handle, request_factory=_large_request, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, port, backlog=1024, reuse_address=True).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening and drop every connection; hanging requests end with it."""
        self._closing.set()
        self._lag.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None
        self.invoice.close()
        self.journal.close()

    # -- the life of a request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        endpoint = _PATHS.get(request.path)
        if endpoint is None or request.method != "POST":
            return await self._other(request)
        self.journal.enter()
        try:
            return await self._model_request(request, endpoint)
        finally:
            self.journal.leave()

    async def _model_request(self, request: web.BaseRequest, endpoint: str) -> web.StreamResponse:
        raw = await request.read()
        tries = self._tries.get(hash(raw), 0)
        received = self.journal.receive(time.time(), request.path, request.headers, raw)
        draw = draw_for(self.behaviour.seed, raw, tries)
        call = Call(request, endpoint, raw, received, f"req_{uuid.uuid4().hex}", draw, self.journal.received, tries)
        if refusal := self._refused(call):
            return self._refuse(call, refusal, "bad_request" if refusal.status == 400 else str(refusal.status))
        key = request.headers.get("Idempotency-Key")
        if key is None or not self.behaviour.honour_idempotency:
            return await self._answer(call)
        return await self._answer_once(call, key)

    def _refused(self, call: Call) -> wire.Refusal | None:
        """What any vendor refuses before it looks at quotas: the wrong key, a wrong body, an unknown model."""
        if not self._is_authorized(call.request):
            return wire.refusal_of(Fault.UNAUTHORIZED, 0)
        if refusal := answers.wrong(call.endpoint, call.body):
            return refusal
        if call.model not in self._prices and "*" not in self._prices:
            return wire.unknown_model(call.model)
        refused = next((param for param in self.behaviour.refused_params if param in call.body), None)
        return self._wrong_schema(call) if refused is None else wire.unsupported(refused)

    def _wrong_schema(self, call: Call) -> wire.Refusal | None:
        schema = (call.body.get("response_format") or {}).get("json_schema")
        wanted = self.behaviour.demands_strict
        if wanted is None or not schema or bool(schema.get("strict")) == wanted:
            return None
        verdict = "must be set to true" if wanted else "is not supported with this model"
        return wire.bad_request(f"response_format: 'json_schema.strict' {verdict}.", "response_format")

    def _is_authorized(self, request: web.BaseRequest) -> bool:
        key = self.behaviour.api_key
        return key is None or request.headers.get("Authorization") == f"Bearer {key}"

    async def _answer_once(self, call: Call, key: str) -> web.StreamResponse:
        """Answer under an idempotency key: from memory if it was answered, after the one that is being made if any."""
        while (making_now := self._in_the_making.get(key)) is not None:
            await making_now.wait()
        if (known := self._answers.get(key)) is not None:
            return self._replay(call, known)
        self._in_the_making[key] = asyncio.Event()
        try:
            return await self._answer(call, key)
        finally:
            self._let_others_at(key)

    def _let_others_at(self, key: str) -> None:
        if (done := self._in_the_making.pop(key, None)) is not None:
            done.set()

    def _replay(self, call: Call, known: Produced) -> web.StreamResponse:
        if known.asked != call.raw:
            message = "Keys for idempotent requests can only be used with the parameters they were first used with."
            return self._refuse(call, wire.bad_request(message, code="idempotency_error"), "bad_request")
        self.journal.count("replayed")
        headers = {"x-request-id": known.request_id, "idempotent-replayed": "true"}
        return self._response(call, 200, known.body, known.content_type, headers)

    async def _answer(self, call: Call, key: str | None = None) -> web.StreamResponse:
        tokens = answers.input_tokens(call.endpoint, call.body, self.behaviour)
        if refusal := self._quotas.refusal(call.model, tokens, time.monotonic()):
            return self._refuse(call, refusal, "over_limit")
        try:
            self._deal_fault(call)
        except ValueError as error:
            return self._refuse(call, wire.bad_request(str(error)), "bad_request")
        if call.raw_answer is not None:
            return self._send_raw(call, call.raw_answer)
        if call.fault is not None and (refusal := wire.refusal_of(call.fault, self.behaviour.retry_after)):
            return self._refuse(call, refusal, call.fault)
        if tokens > (most := self.behaviour.context_tokens):
            return self._refuse(call, wire.too_long(most, tokens), Fault.CONTEXT_LENGTH)
        if call.fault in (Fault.DROP_BEFORE, Fault.HANG):
            self.journal.count(call.fault)
            return await self._no_answer(call)
        if latency := self.behaviour.latency.at(call.draw.latency):
            await asyncio.sleep(latency)
        await self._release(call)
        produced = self._produce(call, tokens)
        if key is not None:
            self._remember(key, produced)
        return await self._send(call, produced)

    async def _release(self, call: Call) -> None:
        """Return when the request may have its answer."""
        while (after := self.behaviour.hold_after) is not None and call.number > after:
            await self._changed.wait()

    def _deal_fault(self, call: Call) -> None:
        """Forced by a marker, else next in the script, else by chance."""
        if marker := MARKER.search(call.raw):
            call.outcome = forced_by(marker, call.tries)
        elif self._script:
            call.outcome = self._script.popleft()
        else:
            call.outcome = str(fault_at(self._odds, call.draw.fault) or OK)
        match self.behaviour.step(call.outcome):
            case Fault() as fault:
                call.fault = fault
            case RawAnswer() as answer:
                call.raw_answer = answer
        if call.outcome != OK:
            self._tries[hash(call.raw)] = call.tries + 1

    def _produce(self, call: Call, tokens: int) -> Produced:
        """Make the answer and charge for it."""
        made = answers.make(call.endpoint, call.body, tokens, call.fault, self.behaviour, call.request_id)
        self._charge(
            call, made.usage, (self._prices.get(call.model) or self._prices["*"]).cost(made.usage) + self._on_top(call)
        )
        self._quotas.spend_output(call.model, made.usage.completion_tokens, time.monotonic())
        self.journal.count("client_left" if call.client_has_left else call.outcome)
        return Produced(call.request_id, made.body, made.content_type, call.raw)

    def _charge(self, call: Call, usage: Usage, cost_nanodollars: int) -> None:
        headers = call.received.headers
        self.invoice.add(
            InvoiceLine(
                request_id=call.request_id,
                endpoint=call.endpoint,
                model=call.model,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                completion_tokens=usage.completion_tokens,
                cost_nanodollars=cost_nanodollars,
                outcome=call.outcome,
                at=time.time(),
                idempotency_key=headers.get("idempotency-key"),
                client_request_id=headers.get("x-client-request-id") or headers.get("x-request-id"),
            )
        )

    def _send_raw(self, call: Call, answer: RawAnswer) -> web.Response:
        """An answer as it was set, charged as it was set. Its invoice line has no tokens."""
        if answer.cost_nanodollars is not None:
            self._charge(call, Usage(0, 0), answer.cost_nanodollars)
        self.journal.count(call.outcome)
        return self._response(call, answer.status, answer.body.encode(), wire.JSON, answer.headers)

    def _on_top(self, call: Call) -> int:
        """Nano-dollars for parameters that cost by themselves."""
        charged = self.behaviour.charged_params.items()
        return sum(int(Decimal(usd) * 10**9) for param, usd in charged if call.body.get(param) not in (None, False))

    def _remember(self, key: str, produced: Produced) -> None:
        self._answers[key] = produced
        if len(self._answers) > REMEMBERED_ANSWERS:
            self._answers.popitem(last=False)
        self._let_others_at(key)

    # -- sending

    async def _send(self, call: Call, produced: Produced) -> web.StreamResponse:
        body = produced.body
        match call.fault:
            case Fault.DROP_AFTER | Fault.HANG_BILLED:
                return await self._no_answer(call)
            case Fault.DROP_MIDWAY | Fault.SLOW:
                return await self._trickle(call, produced)
            case Fault.MALFORMED:
                body = body[: len(body) // 2] + b"<html>"
            case Fault.OVERSIZED:
                return await self._flood(call, produced)
            case _:
                pass
        return self._response(call, 200, body, produced.content_type)

    async def _no_answer(self, call: Call) -> web.StreamResponse:
        """End the connection without a byte, at once or, if it hangs, when the client or the double does."""
        if call.fault in (Fault.HANG, Fault.HANG_BILLED):
            while not call.client_has_left and not self._closing.is_set():  # noqa: ASYNC110  (nothing tells of the client)
                await asyncio.sleep(LOOK_S)
        if call.request.transport is not None:
            call.request.transport.abort()
        return web.Response()  # goes nowhere

    async def _trickle(self, call: Call, produced: Produced) -> web.StreamResponse:
        """Send in twenty pieces over ``slow_seconds``; or half of it, and end the connection."""
        body = produced.body
        response = web.StreamResponse(headers=self._headers(call) | {"Content-Type": produced.content_type})
        response.content_length = len(body)
        await response.prepare(call.request)
        if call.fault is Fault.DROP_MIDWAY:
            await response.write(body[: len(body) // 2])
            call.request.protocol.force_close()
            return response
        size = max(1, -(-len(body) // TRICKLES))
        for start in range(0, len(body), size):
            await asyncio.sleep(self.behaviour.slow_seconds / TRICKLES)
            if call.client_has_left:
                break
            await response.write(body[start : start + size])
        return response

    async def _flood(self, call: Call, produced: Produced) -> web.StreamResponse:
        """The answer with blanks before its last brace, until it is large enough or the client has had enough."""
        response = web.StreamResponse(headers=self._headers(call) | {"Content-Type": produced.content_type})
        await response.prepare(call.request)
        left = self.behaviour.oversized_bytes - len(produced.body)
        with contextlib.suppress(ConnectionError):
            await response.write(produced.body[:-1])
            while left > 0 and not call.client_has_left:
                await response.write(b" " * min(left, FLOOD_BYTES))
                left -= FLOOD_BYTES
            await response.write(produced.body[-1:])
        return response

    def _refuse(self, call: Call, refusal: wire.Refusal, outcome: str) -> web.Response:
        self.journal.count(outcome)
        return self._response(call, refusal.status, refusal.body(), wire.JSON, refusal.headers())

    def _response(
        self, call: Call, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        all_headers = self._headers(call) | {"Content-Type": content_type} | dict(headers or {})
        return web.Response(status=status, body=body, headers=all_headers)

    def _headers(self, call: Call) -> dict[str, str]:
        headers = {
            "x-request-id": call.request_id,
            "openai-version": "2020-10-01",
            "openai-processing-ms": str(int((time.time() - call.received.at) * 1000)),
        }
        if isinstance(call.body, dict) and isinstance(call.body.get("model"), str):
            headers.update(self._quotas.headers(call.model, time.monotonic()))
        return headers

    # -- models, and the double itself

    async def _other(self, request: web.BaseRequest) -> web.Response:
        match request.method, request.path:
            case "GET", "/v1/models":
                return self._models(request)
            case "GET", "/_double/invoice":
                return _json(self.invoice.lines())
            case "GET", "/_double/requests":
                return _json({"forgotten": self.journal.forgotten, "requests": self.journal.requests()})
            case "GET", "/_double/stats":
                return _json(self.stats())
            case "POST", "/_double/config":
                return self._configure(await request.read())
            case "POST", "/_double/reset":
                self.forget()
                return _json({})
            case method, path:
                return _refusal(wire.Refusal(404, f"Invalid URL ({method} {path})", "invalid_request_error"))

    def _models(self, request: web.BaseRequest) -> web.Response:
        if not self._is_authorized(request):
            return _refusal(wire.REFUSALS[Fault.UNAUTHORIZED])
        names = sorted(self._prices.keys() - {"*"}) or ["double-small"]
        return web.Response(body=wire.models_body(names, int(time.time())), content_type=wire.JSON)

    def _configure(self, raw: bytes) -> web.Response:
        try:
            self.behave(orjson.loads(raw))
        except ValueError as error:  # orjson's own is one
            return _json({"error": str(error)}, status=400)
        return _json({})


def _refusal(refusal: wire.Refusal) -> web.Response:
    return web.Response(status=refusal.status, body=refusal.body(), content_type=wire.JSON)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type=wire.JSON)


def _large_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """aiohttp's own default refuses bodies over 1 MiB, far below a model's context."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)
