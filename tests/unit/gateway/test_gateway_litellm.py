"""litellm against a vendor that misbehaves: what each fault is to us, and never "not billed" for what was charged."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import traceback
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from airflow_ai_provider.errors import PolicyError, VendorError, VendorPermanentError, VendorTransientError
from airflow_ai_provider.gateway.providers.base import ModelReply, ModelRequest, http_error, not_charged
from airflow_ai_provider.gateway.providers.litellm import LitellmProvider, _import_litellm
from airflow_ai_provider.gateway.settings import Endpoint
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.policy import Deployment
from airflow_ai_provider.testing.behaviour import Fault
from airflow_ai_provider.testing.vendor import VendorDouble

KEY = "sk-0123456789-secret"
PROMPT = "the private words of a customer"
TRANSIENT, PERMANENT = VendorTransientError, VendorPermanentError


def provider(
    base: str | None, *, model: str = "openai/gpt-4o-mini", key: str | None = KEY, **extra: Any
) -> LitellmProvider:
    return LitellmProvider("small", Deployment(model=model, **extra), Endpoint(api_base=base, api_key=key))


async def ask(
    asked: LitellmProvider, prompt: str = PROMPT, *, within: float = 20, schema: dict[str, Any] | None = None
) -> ModelReply:
    messages = [{"role": "user", "content": prompt}]
    try:
        return await asked.complete(ModelRequest(uuid.uuid4().hex, messages, 50, schema, within))
    finally:
        await asked.close()


async def failure(asked: LitellmProvider, prompt: str = PROMPT, *, within: float = 20) -> VendorError:
    with pytest.raises(VendorError) as caught:
        await ask(asked, prompt, within=within)
    return caught.value


@dataclass(frozen=True)
class Expected:
    """What one of the double's faults is to us."""

    family: type[VendorError]
    kind: str
    status: int | None
    billed: bool
    retry_after: float | None = None


FAULTS = {
    Fault.UNAUTHORIZED: Expected(PERMANENT, "unauthorized", 401, billed=False),
    Fault.FORBIDDEN: Expected(PERMANENT, "forbidden", 403, billed=False),
    Fault.NOT_FOUND: Expected(PERMANENT, "not_found", 404, billed=False),
    Fault.REQUEST_TIMEOUT: Expected(TRANSIENT, "timeout", 408, billed=True),
    Fault.CONFLICT: Expected(TRANSIENT, "conflict", 409, billed=True),
    Fault.UNPROCESSABLE: Expected(PERMANENT, "unprocessable", 422, billed=False),
    Fault.RATE_LIMITED: Expected(TRANSIENT, "rate_limited", 429, billed=False, retry_after=2.5),
    Fault.SERVER_ERROR: Expected(TRANSIENT, "server_error", 500, billed=False),
    Fault.BAD_GATEWAY: Expected(TRANSIENT, "server_error", 502, billed=True),
    Fault.UNAVAILABLE: Expected(TRANSIENT, "server_error", 503, billed=False, retry_after=2.5),
    Fault.GATEWAY_TIMEOUT: Expected(TRANSIENT, "timeout", 504, billed=True),
    Fault.INSUFFICIENT_QUOTA: Expected(PERMANENT, "quota_exhausted", 429, billed=False),
    Fault.CONTENT_POLICY: Expected(PERMANENT, "content_policy", 400, billed=False),
    Fault.CONTEXT_LENGTH: Expected(PERMANENT, "context_window", 400, billed=False),
    Fault.DROP_BEFORE: Expected(TRANSIENT, "connection_lost", None, billed=True),
    Fault.HANG: Expected(TRANSIENT, "timeout", None, billed=True),
    Fault.DROP_AFTER: Expected(TRANSIENT, "connection_lost", None, billed=True),
    Fault.DROP_MIDWAY: Expected(TRANSIENT, "connection_lost", None, billed=True),
    Fault.HANG_BILLED: Expected(TRANSIENT, "timeout", None, billed=True),
    Fault.SLOW: Expected(TRANSIENT, "timeout", None, billed=True),
    Fault.MALFORMED: Expected(TRANSIENT, "malformed", None, billed=True),
}
ANSWERED = {Fault.NO_USAGE, Fault.TRUNCATED, Fault.EMPTY}


def test_every_fault_of_the_double_is_asked_for_here() -> None:
    assert FAULTS.keys() | ANSWERED == set(Fault)


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_is_what_it_is_and_is_not_billed_only_if_the_vendor_did_not_charge(
    vendor: VendorDouble, fault: Fault, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    vendor.configure(retry_after=2.5, slow_seconds=30)
    provider(vendor.base_url)  # what litellm loads when it is first used is not part of the time given below
    hangs = fault in (Fault.HANG, Fault.HANG_BILLED, Fault.SLOW)
    with caplog.at_level(logging.DEBUG):
        error = await failure(provider(vendor.base_url), f"{PROMPT} [[double:{fault}]]", within=1 if hangs else 20)
    found = Expected(type(error), error.kind, error.http_status, error.billed, error.retry_after)
    assert found == FAULTS[fault]
    assert error.billed or vendor.invoice() == []
    assert vendor.stats().requests == 1
    said = [str(error), repr(error), *traceback.format_exception(error), caplog.text, *capfd.readouterr()]
    assert not [text for text in said if PROMPT in text or KEY in text]
    assert str(error).startswith("small: ")


async def test_an_answer_and_its_usage_arrive(vendor: VendorDouble) -> None:
    vendor.configure(cached_share=0.5)
    reply = await ask(provider(vendor.base_url), "one two three four")
    assert reply.text == 'Answer about "one two three four…"'
    (line,) = vendor.invoice()
    assert reply.usage == Usage(line.prompt_tokens, line.completion_tokens, line.cached_tokens) == Usage(4, 9, 2)
    assert reply.finish_reason == "stop"


async def test_an_answer_without_usage_has_none_although_litellm_says_zero(vendor: VendorDouble) -> None:
    reply = await ask(provider(vendor.base_url), f"{PROMPT} [[double:no_usage]]")
    assert (reply.usage, bool(reply.text)) == (None, True)
    assert vendor.stats().billed == 1


async def test_an_answer_cut_short_or_empty_is_an_answer_that_was_paid_for(vendor: VendorDouble) -> None:
    cut = await ask(provider(vendor.base_url), f"{PROMPT} [[double:truncated]]")
    empty = await ask(provider(vendor.base_url), f"{PROMPT} [[double:empty]]")
    assert (cut.finish_reason, empty.text, empty.finish_reason) == ("length", "", "stop")
    charged = [Usage(line.prompt_tokens, line.completion_tokens) for line in vendor.invoice()]
    assert [cut.usage, empty.usage] == charged


async def test_half_an_emoji_does_not_make_an_answer_that_cannot_be_written() -> None:
    body = (
        b'{"id": "c", "object": "chat.completion", "created": 1, "model": "x", "choices": [{"index": 0, '
        b'"finish_reason": "length", "message": {"role": "assistant", "content": "\\u597d \\ud83d\\ude00 \\ud83d"}}], '
        b'"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
    )
    for model in ("openai/x", "hosted_vllm/qwen"):
        async with answering(200, body) as url:
            assert (await ask(provider(url, model=model))).text == "好 😀 \ufffd"


async def test_what_goes_over_the_wire(vendor: VendorDouble) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    asked = LitellmProvider(
        "small",
        Deployment(model="openai/gpt-4o-mini", params={"temperature": 0, "seed": 7}),
        Endpoint(api_base=vendor.base_url, api_key=KEY, headers={"X-Team": "support"}),
    )
    await ask(asked, schema=schema)
    (request,) = vendor.requests()
    assert request.body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 50,
        "temperature": 0,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    }
    assert request.headers["x-team"] == "support"
    assert len(request.headers["idempotency-key"]) == 32


async def test_calls_at_the_same_time_are_one_request_each(vendor: VendorDouble) -> None:
    asked = provider(vendor.base_url)
    messages = [{"role": "user", "content": "hi [[double:500*2]]"}]
    requests = [ModelRequest(uuid.uuid4().hex, messages, 50, None, 20) for _ in range(6)]
    found = await asyncio.gather(*map(asked.complete, requests), return_exceptions=True)
    await asked.close()
    assert vendor.stats().requests == 6
    assert sum(isinstance(reply, ModelReply) for reply in found) == vendor.stats().billed == 4


async def test_a_deployment_can_be_opened_again_after_it_was_closed(vendor: VendorDouble) -> None:
    """litellm would hand out the closed client of before."""
    for n in range(3):
        assert (await ask(provider(vendor.base_url), f"question {n}")).text


async def test_no_connection_is_certainly_not_billed() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = await failure(provider(f"http://127.0.0.1:{probe.getsockname()[1]}/v1"))
    assert (type(error), error.kind, error.billed) == (TRANSIENT, "connection_refused", False)
    error = await failure(provider("http://no-such-host.invalid/v1"))
    assert (type(error), error.kind, error.billed) == (TRANSIENT, "connection_refused", False)


async def test_without_a_key_nothing_is_sent(vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for model in ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5"):
        error = await failure(provider(vendor.base_url, model=model, key=None))
        assert (type(error), error.kind, error.billed) == (PERMANENT, "unauthorized", False)
    assert vendor.stats().requests == 0


async def test_a_param_the_model_does_not_take_is_refused_without_a_request(vendor: VendorDouble) -> None:
    error = await failure(provider(vendor.base_url, params={"reasoning_effort": "high"}))
    assert (type(error), error.kind, error.billed) == (PERMANENT, "unsupported_params", False)
    assert vendor.stats().requests == 0


@pytest.mark.parametrize(
    ("base", "model", "key", "message"),
    [
        ("http://h/v1", "nonsense/x", KEY, "litellm knows no provider of model 'nonsense/x'"),
        ("h/v1", "openai/x", KEY, "api_base: expected a URL"),
        (None, "openai/x", KEY + "\n", "the API key of its connection"),
        (None, "openai/x", f" {KEY}", "the API key of its connection"),
    ],
)
def test_what_could_never_work_is_found_before_the_first_call(
    base: str | None, model: str, key: str, message: str
) -> None:
    with pytest.raises(PolicyError, match=r"^deployments\.small: ") as caught:
        provider(base, model=model, key=key)
    assert message in str(caught.value)
    assert KEY not in str(caught.value)


@asynccontextmanager
async def answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> AsyncIterator[str]:
    """A server that says the same to everyone; its URL."""

    async def handle(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(status=status, body=body, headers={"Content-Type": "application/json", **(headers or {})})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


OTHERS = ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.0-flash", "hosted_vllm/qwen", "openrouter/a/b", "openai/x"]
HALF = b'{"choices": [{"mess'
LIMITED_IN_A_200 = b'{"error": {"message": "slow down", "code": 429}}'
OVERLOADED = b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}'


@pytest.mark.parametrize("model", OTHERS)
async def test_other_providers_of_litellm_are_understood_the_same_way(model: str) -> None:
    """Some map half a body to 422 and an error inside a 200 to 429: those were answers, and may have been charged."""
    async with answering(529, OVERLOADED, {"retry-after": "7"}) as url:
        error = await failure(provider(url, model=model))
    found = Expected(type(error), error.kind, error.http_status, error.billed, error.retry_after)
    assert found == Expected(TRANSIENT, "server_error", 529, billed=False, retry_after=7)
    async with answering(401, b"{}") as url:
        error = await failure(provider(url, model=model))
    assert (type(error), error.kind, error.billed) == (PERMANENT, "unauthorized", False)
    for body in (HALF, LIMITED_IN_A_200):
        async with answering(200, body) as url:
            error = await failure(provider(url, model=model))
        assert (type(error), error.billed) == (TRANSIENT, True)


async def test_a_spent_balance_is_permanent_and_an_ordinary_limit_of_gemini_is_not() -> None:
    spent = b'{"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to go on"}}'
    async with answering(400, spent) as url:
        error = await failure(provider(url, model="anthropic/claude-sonnet-4-5"))
    assert (type(error), error.kind) == (PERMANENT, "quota_exhausted")
    limited = b'{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota"}}'
    async with answering(429, limited) as url:
        error = await failure(provider(url, model="gemini/gemini-2.0-flash"))
    assert (type(error), error.kind) == (TRANSIENT, "rate_limited")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "1e9"}, 3600),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
async def test_how_long_a_vendor_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    async with answering(429, b"{}", headers) as url:
        assert (await failure(provider(url))).retry_after == seconds


async def test_a_vendor_may_name_the_moment_to_come_back() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    async with answering(503, b"", {"retry-after": later}) as url:
        error = await failure(provider(url))
    assert error.retry_after == pytest.approx(90, abs=10)


async def test_what_a_vendor_says_does_not_get_into_the_message() -> None:
    body = b'{"error": {"message": "bad prompt: %s", "code": "%s"}}' % ((PROMPT.encode(),) * 2)
    async with answering(400, body) as url:
        error = await failure(provider(url))
    assert str(error) == "small: HTTP 400"
    assert error.kind == "bad_request"


def test_only_a_refusal_that_is_certain_is_not_charged() -> None:
    certain = {*range(400, 500), 500, 503, 529} - {408, 409}
    assert {status for status in range(100, 600) if not_charged(status)} == certain
    errors = {status: http_error("small", status) for status in range(300, 600)}
    assert {status for status, error in errors.items() if not error.billed} == certain
    transient = {status for status, error in errors.items() if isinstance(error, TRANSIENT)}
    assert transient == {408, 409, 429, *range(500, 600)}


def test_litellm_is_quiet_and_stays_offline() -> None:
    litellm = _import_litellm()
    assert (litellm.telemetry, litellm.suppress_debug_info, litellm.drop_params) == (False, True, False)


class ResettingVendor:
    """Takes a request, makes and charges its answer, and resets the connection; later requests are answered."""

    def __init__(self) -> None:
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(size.split(b":")[1]))
        self.requests += 1
        no_linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        writer.transport.abort()


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5", "hosted_vllm/x", "groq/x"])
async def test_an_attempt_is_one_request_even_where_litellm_would_send_it_again(model: str) -> None:
    """Its own HTTP client repeats a request whose connection was lost, although the first may have been charged."""
    vendor = ResettingVendor()
    async with await asyncio.start_server(vendor.serve, "127.0.0.1", 0) as server:
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        provider = LitellmProvider("small", Deployment(model=model), Endpoint(api_base=base, api_key="k"))
        with pytest.raises(VendorTransientError) as caught:
            await provider.complete(ModelRequest("a" * 32, [{"role": "user", "content": "hello"}], 50, None, 15))
        await provider.close()
    assert (vendor.requests, caught.value.billed) == (1, True)
