"""One deployment through either adapter: the same request, the same answer, the same error, the same cost.

Where they differ on purpose is said at the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import struct
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from support.pipeline import House, deployment, policy
from support.providers import (
    ADAPTERS,
    KEY,
    PERMANENT,
    PROMPT,
    TRANSIENT,
    Expected,
    answering,
    ask,
    completion,
    failure,
    provider,
    request,
)

from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.providers.base import ModelReply, RateLimits
from airflow_ai_provider.testing.behaviour import Fault, Limits
from airflow_ai_provider.testing.vendor import VendorDouble

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
    Fault.REDIRECT: Expected(PERMANENT, "redirected", 307, billed=False),
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
    Fault.OVERSIZED: Expected(PERMANENT, "oversized", None, billed=True),
}
ANSWERED = {Fault.NO_USAGE, Fault.TRUNCATED, Fault.EMPTY}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "refund", "parameters": SCHEMA}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
PAPER = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}}

both = pytest.mark.parametrize("adapter", ADAPTERS)


def test_every_fault_of_the_double_is_asked_for_here() -> None:
    assert FAULTS.keys() | ANSWERED == set(Fault)


@both
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_is_what_it_is_and_is_not_billed_only_if_the_vendor_did_not_charge(
    vendor: VendorDouble,
    adapter: str,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    vendor.configure(retry_after=2.5, slow_seconds=30, oversized_bytes=17 * 2**20)
    asked = provider(vendor.base_url, adapter=adapter)
    hangs = fault in (Fault.HANG, Fault.HANG_BILLED, Fault.SLOW)
    with caplog.at_level(logging.DEBUG):
        error = await failure(asked, f"{PROMPT} [[double:{fault}]]", within=1 if hangs else 20)
    assert Expected.of(error) == FAULTS[fault]
    assert error.billed or vendor.invoice() == []
    assert vendor.stats().requests == 1
    said = [str(error), repr(error), *traceback.format_exception(error), caplog.text, *capfd.readouterr()]
    assert not [text for text in said if PROMPT in text or KEY in text]
    assert str(error).startswith("small: ")
    assert (error.__cause__, error.__context__) == (None, None), "which would know the key"


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schema": {"schema": SCHEMA},
    "image": {"prompt": [{"type": "text", "text": "What is this?"}, PICTURE]},
    "file": {"prompt": [{"type": "text", "text": "What is this?"}, PAPER]},
    "tools": {"tools": (TOOL,)},
    "a tool that must be called": {"tools": (TOOL,), "tool_choice": "required"},
    "this very tool": {"tools": (TOOL,), "tool_choice": {"type": "function", "function": {"name": "refund"}}},
    "the route's params": {"params": {"temperature": 0.5, "top_p": 0.9}},
    "Han and emoji": {"prompt": "好的 😀 \u2028"},
    "cut short": {"prompt": f"{PROMPT} [[double:truncated]]"},
    "empty": {"prompt": f"{PROMPT} [[double:empty]]"},
    "no usage": {"prompt": f"{PROMPT} [[double:no_usage]]"},
}


async def asked_by(vendor: VendorDouble, adapter: str, asked: dict[str, Any]) -> tuple[ModelReply, Any, Any]:
    """(answer, body that the vendor saw, its invoice line)."""
    vendor.reset()
    vendor.configure(cached_share=0.25, cache_write_share=0.25)
    opened = provider(
        vendor.base_url, adapter=adapter, params={"temperature": 0, "seed": 7}, headers={"X-Team": "support"}
    )
    reply = await ask(opened, **asked)
    (seen,), (line,) = vendor.requests(), vendor.invoice()
    assert len(seen.headers["idempotency-key"]) == 32
    assert seen.headers["x-team"] == "support"
    assert reply.vendor_id == f"chatcmpl-{line.request_id.removeprefix('req_')}"
    return reply, seen.body, line


@pytest.mark.parametrize("case", REQUESTS)
async def test_the_vendor_sees_one_request_and_we_see_one_answer(vendor: VendorDouble, case: str) -> None:
    ours, our_body, line = await asked_by(vendor, "openai_compatible", REQUESTS[case])
    theirs, their_body, their_line = await asked_by(vendor, "litellm", REQUESTS[case])
    assert our_body == their_body
    assert without_names(ours) == without_names(theirs)
    assert line.cost_nanodollars == their_line.cost_nanodollars
    written = line.cache_write_tokens
    charged = Usage(line.prompt_tokens, line.completion_tokens, line.cached_tokens, written, written)
    assert ours.usage == (None if case == "no usage" else charged)


def without_names(reply: ModelReply) -> ModelReply:
    """Without what the vendor makes up anew for each answer."""
    calls = tuple({**call, "id": None} for call in reply.tool_calls)
    return replace(reply, vendor_id=None, tool_calls=calls)


@both
async def test_what_goes_over_the_wire(vendor: VendorDouble, adapter: str) -> None:
    _, body, _ = await asked_by(vendor, adapter, REQUESTS["a tool that must be called"] | {"schema": SCHEMA})
    assert body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 50,
        "temperature": 0,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
        "tools": [TOOL],
        "tool_choice": "required",
    }


@both
async def test_a_schema_makes_json_and_a_tool_makes_a_call(vendor: VendorDouble, adapter: str) -> None:
    structured, _, _ = await asked_by(vendor, adapter, REQUESTS["schema"])
    assert json.loads(structured.text).keys() == {"a"}
    called, _, _ = await asked_by(vendor, adapter, REQUESTS["this very tool"])
    (call,) = called.tool_calls
    assert (called.text, called.finish_reason, call["function"]["name"]) == ("", "tool_calls", "refund")
    assert json.loads(call["function"]["arguments"]).keys() == {"a"}


@both
async def test_an_image_is_charged_as_one(vendor: VendorDouble, adapter: str) -> None:
    vendor.configure(image_tokens=1000, file_tokens=300)
    text = {"type": "text", "text": "What is this?"}
    for parts in ([text], [text, PICTURE, PICTURE], [text, PAPER]):
        await ask(provider(vendor.base_url, adapter=adapter), parts)
    plain, images, paper = (line.prompt_tokens for line in vendor.invoice())
    assert (images - plain, paper - plain) == (2000, 300)


@both
@pytest.mark.parametrize("model", ["o3-mini", "gpt-5-mini", "gpt-4o-mini", "gpt-4.1"])
async def test_a_reasoning_model_gets_its_limit_by_the_name_it_takes(
    vendor: VendorDouble, adapter: str, model: str
) -> None:
    await ask(provider(vendor.base_url, adapter=adapter, model=f"openai/{model}"))
    (seen,) = vendor.requests()
    wanted = "max_completion_tokens" if model[0] == "o" or model.startswith("gpt-5") else "max_tokens"
    assert {name: value for name, value in seen.body.items() if name.startswith("max_")} == {wanted: 50}


@both
@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("2024-10-21", "/openai/deployments/my-model/chat/completions?api-version=2024-10-21"),
        ("v1", "/openai/v1/chat/completions"),
    ],
)
async def test_azure_is_addressed_as_it_wants_to_be(adapter: str, version: str, path: str) -> None:
    seen = Listener(json.dumps(completion()).encode())
    async with seen.listening() as base:
        asked = provider(base, adapter=adapter, model="azure/my-model", params={"api_version": version})
        assert (await ask(asked)).text == "yes"
    (head,) = seen.heads
    assert head[""] == f"POST {path} HTTP/1.1"
    if version == "v1":  # takes either; litellm sends the other
        assert KEY in (head.get("api-key"), head.get("authorization", "").removeprefix("Bearer "))
    else:
        assert (head["api-key"], head.get("authorization")) == (KEY, None)


@both
async def test_quota_headers_arrive(vendor: VendorDouble, adapter: str) -> None:
    vendor.configure(limits=Limits(requests_per_minute=10, tokens_per_minute=1000))
    limits = (await ask(provider(vendor.base_url, adapter=adapter))).limits
    assert limits
    assert (limits.requests, limits.requests_remaining, limits.tokens) == (10, 9, 1000)
    assert limits.tokens_remaining is not None
    assert limits.tokens_remaining < 1000
    assert limits.requests_reset == pytest.approx(60, abs=15)
    headers = {"x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "6m0.5s"}
    async with answering(200, json.dumps(completion()).encode(), headers) as url:
        reply = await ask(provider(url, adapter=adapter))
    assert reply.limits == RateLimits(requests_remaining=7, requests_reset=360.5)


BODIES: dict[str, bytes] = {
    "half of it": b'{"choices": [{"mess',
    "no JSON": b"<html>busy</html>",
    "nothing": b"",
    "no UTF-8": b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
    "no choices": b'{"choices": []}',
    "null": b"null",
    "a list": b"[]",
    "a surrogate in half a body": b'{"choices": [{"message": {"content": "\\ud83d"',
}


@both
@pytest.mark.parametrize("body", BODIES)
async def test_what_cannot_be_read_may_have_been_charged(adapter: str, body: str) -> None:
    async with answering(200, BODIES[body]) as url:
        error = await failure(provider(url, adapter=adapter))
    assert (type(error), error.http_status, error.billed) == (TRANSIENT, None, True)
    if adapter == "openai_compatible":
        assert error.kind == "malformed"  # litellm does not always say


ANSWERS: dict[str, dict[str, Any]] = {
    "text": completion("  two\n words "),
    "null": completion(None),
    "half an emoji": completion("好 😀 \ud83d"),
    "a thought": completion("<think>let me see</think>42"),
    "end of sequence": completion("x", finish="eos"),
    "cut": completion("x", finish="length"),
    "filtered": completion("", finish="content_filter"),
    "no reason": completion("x", finish=None),
    "cached": completion("x", usage={"prompt_tokens_details": {"cached_tokens": 64}}),
    "reasoned": completion("x", usage={"completion_tokens_details": {"reasoning_tokens": 5}}),
    "no figures": {**completion("x"), "usage": None},
    "no such figure": completion("x", usage={"prompt_tokens": 10**30}),
    "a call": completion(
        None,
        finish="tool_calls",
        tool_calls=[{"id": "c1", "type": "function", "function": {"name": "refund", "arguments": '{"a": "b\ud83d"}'}}],
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_reads_the_same(answer: str) -> None:
    async with answering(200, json.dumps(ANSWERS[answer]).encode()) as url:
        ours, theirs = [await ask(provider(url, adapter=adapter)) for adapter in ADAPTERS]
    assert ours == theirs
    orjson.dumps([ours.text, ours.tool_calls])  # can be written


@both
async def test_half_an_emoji_does_not_make_an_answer_that_cannot_be_written(adapter: str) -> None:
    async with answering(200, json.dumps(ANSWERS["half an emoji"]).encode()) as url:
        assert (await ask(provider(url, adapter=adapter))).text == "好 😀 \ufffd"


REFUSALS: dict[str, tuple[int, Any, Expected]] = {
    "OpenAI's context": (
        400,
        {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}},
        Expected(PERMANENT, "context_window", 400, billed=False),
    ),
    "vLLM's context": (
        400,
        {"object": "error", "message": "This model's maximum context length is 8 tokens.", "code": 400},
        Expected(PERMANENT, "context_window", 400, billed=False),
    ),
    "Azure's filter": (
        400,
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management "
                "policy.",
                "code": "content_filter",
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        Expected(PERMANENT, "content_policy", 400, billed=False),
    ),
    "no money": (402, {"error": {"message": "pay"}}, Expected(PERMANENT, "payment_required", 402, billed=False)),
    "too large": (413, {}, Expected(PERMANENT, "too_large", 413, billed=False)),
    "a text": (400, "no", Expected(PERMANENT, "bad_request", 400, billed=False)),
    "overloaded": (529, [], Expected(TRANSIENT, "server_error", 529, billed=False)),
    "behind a gateway": (
        502,
        {"error": {"message": "maximum context length"}},
        Expected(TRANSIENT, "server_error", 502, billed=True),
    ),
}


@both
@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_told_by_what_the_vendor_says(adapter: str, case: str) -> None:
    status, body, expected = REFUSALS[case]
    async with answering(status, json.dumps(body).encode()) as url:
        assert Expected.of(await failure(provider(url, adapter=adapter))) == expected


@both
async def test_what_a_vendor_says_does_not_get_into_the_message(adapter: str) -> None:
    body = b'{"error": {"message": "bad prompt: %s", "code": "%s"}}' % ((PROMPT.encode(),) * 2)
    async with answering(400, body) as url:
        error = await failure(provider(url, adapter=adapter))
    assert str(error) == "small: HTTP 400"
    assert error.kind == "bad_request"


@both
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_refused_and_names_the_fix(vendor: VendorDouble, adapter: str, status: int) -> None:
    to = f"{vendor.base_url}/chat/completions?secret=1"
    async with answering(status, b"", {"location": to}) as url:
        error = await failure(provider(url, adapter=adapter))
    assert Expected.of(error) == Expected(PERMANENT, "redirected", status, billed=False)
    assert "it redirects to http://127.0.0.1, and redirects are not followed: give the API's own" in str(error)
    assert "secret" not in str(error)
    assert vendor.stats().requests == 0


@both
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "1000000000"}, 600),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
async def test_how_long_a_vendor_asks_to_wait(adapter: str, headers: dict[str, str], seconds: float | None) -> None:
    async with answering(429, b"{}", headers) as url:
        assert (await failure(provider(url, adapter=adapter))).retry_after == seconds


def _in(seconds: float, unit: int = 1) -> str:
    return str(int((datetime.now(UTC).timestamp() + seconds) * unit))


@both
@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s"}, {}, 6),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "EPOCH"}, {}, 60),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "26784"}, {}, 600),
        ({"X-RateLimit-Limit": "9", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "EPOCH_MS"}, {}, 60),
        ({"RateLimit": '"default";r=0;t=30', "RateLimit-Policy": '"default";q=100;w=60'}, {}, 30),
        ({"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "RFC3339"}, {}, 60),
        ({"retry-after": "3"}, {"error": {"message": "Please try again in 6m0s."}}, 3),
        ({"x-ms-retry-after-ms": "250"}, {}, 0.25),
        ({}, {"error": {"message": "Rate limit reached. Please try again in 6m0s. Visit us."}}, 360),
        ({}, {"error": {"message": "Please try again in 20ms."}}, 0.02),
        ({}, {"error": {"code": 429, "details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}}, 34),
        ({}, [{"error": {"code": 429, "message": "Please retry in 34.07s.", "status": "RESOURCE_EXHAUSTED"}}], 34.07),
        ({}, {"error": {"metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9"}}}}, 9),
        ({}, {"message": "Too many tokens, please wait before trying again."}, None),
        ({}, "Too many requests, retry after 12 seconds", 12),
        ({}, {"error": "busy", "retry_after": 5}, 5),
    ],
)
async def test_a_limit_is_read_alike_wherever_it_is_told(
    adapter: str, headers: dict[str, str], body: Any, seconds: float | None
) -> None:
    later = (datetime.now(UTC) + timedelta(seconds=60)).isoformat().replace("+00:00", "Z")
    moments = {"EPOCH": _in(60), "EPOCH_MS": _in(60, 1000), "RFC3339": later}
    headers = {name: moments.get(value, value) for name, value in headers.items()}
    async with answering(429, json.dumps(body).encode(), headers) as url:
        error = await failure(provider(url, adapter=adapter))
    assert (error.kind, error.http_status, error.billed) == ("rate_limited", 429, False)
    assert error.retry_after == (
        None if seconds is None else pytest.approx(seconds, abs=20 if seconds == 60 else 0.001)
    )


@both
async def test_quotas_of_many_vendors_arrive_beside_an_answer(adapter: str) -> None:
    headers = {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": _in(60)}
    async with answering(200, json.dumps(completion()).encode(), headers) as url:
        limits = (await ask(provider(url, adapter=adapter))).limits
    assert limits
    assert (limits.requests, limits.requests_remaining, limits.at_once) == (10, 0, True)
    assert limits.requests_reset == pytest.approx(60, abs=20)


@both
async def test_a_vendor_may_name_the_moment_to_come_back(adapter: str) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    async with answering(503, b"", {"retry-after": later}) as url:
        error = await failure(provider(url, adapter=adapter))
    assert error.retry_after == pytest.approx(90, abs=10)


# Connections


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context


@both
async def test_no_connection_is_certainly_not_billed(adapter: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = await failure(provider(f"http://127.0.0.1:{probe.getsockname()[1]}/v1", adapter=adapter))
    assert Expected.of(error) == Expected(TRANSIENT, "connection_refused", None, billed=False)
    error = await failure(provider("http://no-such-host.invalid/v1", adapter=adapter))
    assert Expected.of(error) == Expected(TRANSIENT, "unknown_host", None, billed=False)


@both
async def test_a_server_that_cannot_prove_who_it_is_gets_nothing(adapter: str, untrusted: ssl.SSLContext) -> None:
    async with answering(200, json.dumps(completion()).encode(), tls=untrusted) as url:
        error = await failure(provider(url, adapter=adapter))
    assert Expected.of(error) == Expected(TRANSIENT, "certificate", None, billed=False)
    assert "SSL_CERT_FILE" in str(error)


@both
async def test_a_door_that_does_not_speak_tls_is_not_billed(vendor: VendorDouble, adapter: str) -> None:
    error = await failure(provider(vendor.base_url.replace("http:", "https:"), adapter=adapter))
    assert Expected.of(error) == Expected(TRANSIENT, "connection_refused", None, billed=False)


@both
@pytest.mark.parametrize("closing", ["reset", "closed"])
async def test_an_attempt_is_one_request_even_if_its_connection_is_lost(adapter: str, closing: str) -> None:
    """Some clients repeat a request whose connection was lost, although the first may have been charged."""
    vendor = Listener(None, reset=closing == "reset")
    async with vendor.listening() as base:
        error = await failure(provider(base, adapter=adapter))
    assert len(vendor.heads) == 1
    assert Expected.of(error) == Expected(TRANSIENT, "connection_lost", None, billed=True)


@both
async def test_a_kept_connection_that_dies_under_a_request_may_have_been_charged(adapter: str) -> None:
    vendor = Listener(json.dumps(completion()).encode(), answers=1)
    async with vendor.listening() as base:
        asked = provider(base, adapter=adapter)
        await asked.complete(request())
        error = await failure(asked)
    assert (vendor.connections, len(vendor.heads)) == (1, 2)
    assert Expected.of(error) == Expected(TRANSIENT, "connection_lost", None, billed=True)


@both
async def test_calls_at_the_same_time_are_one_request_each(vendor: VendorDouble, adapter: str) -> None:
    asked = provider(vendor.base_url, adapter=adapter)
    found = await asyncio.gather(
        *(asked.complete(request("hi [[double:500*2]]")) for _ in range(6)), return_exceptions=True
    )
    await asked.close()
    assert vendor.stats().requests == 6
    assert sum(isinstance(reply, ModelReply) for reply in found) == vendor.stats().billed == 4


@both
async def test_a_deployment_can_be_opened_again_after_it_was_closed(vendor: VendorDouble, adapter: str) -> None:
    for n in range(3):
        assert (await ask(provider(vendor.base_url, adapter=adapter), f"question {n}")).text


@both
async def test_a_call_that_is_stopped_leaves_nothing_behind(vendor: VendorDouble, adapter: str) -> None:
    asked = provider(vendor.base_url, adapter=adapter)
    task = asyncio.create_task(asked.complete(request("[[double:hang]]")))
    await wait_for(vendor, in_flight=1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asked.close()
    await wait_for(vendor, in_flight=0)


async def wait_for(vendor: VendorDouble, *, in_flight: int) -> None:
    async with asyncio.timeout(20):
        while vendor.stats().in_flight != in_flight:  # noqa: ASYNC110 - the double is in another thread
            await asyncio.sleep(0.01)


# The whole path


def test_ledger_and_invoice_agree_by_either_adapter(vendor: VendorDouble, tmp_path: Path) -> None:
    spent = []
    for adapter in ADAPTERS:
        vendor.reset()
        (folder := tmp_path / adapter).mkdir()
        house = House(folder, vendor)
        house.write(policy(deployments={"small": deployment(adapter=adapter)}))
        outcome = house.run([f"question {n}" for n in range(5)])
        assert outcome.summary.ok == 5
        assert house.spent() == vendor.stats().cost_nanodollars
        spent.append((house.spent(), outcome.column("answer")))
    assert spent[0] == spent[1]


# Where they differ on purpose


async def test_a_param_the_model_does_not_take_is_refused_by_litellm_and_else_by_the_vendor(
    vendor: VendorDouble,
) -> None:
    params = {"reasoning_effort": "high"}
    error = await failure(provider(vendor.base_url, adapter="litellm", params=params))
    assert Expected.of(error) == Expected(PERMANENT, "unsupported_params", None, billed=False)
    assert vendor.stats().requests == 0
    await ask(provider(vendor.base_url, adapter="openai_compatible", params=params))
    assert vendor.requests()[0].body["reasoning_effort"] == "high"


class Listener:
    """Reads one request after the other; answers the first ``answers`` of them, and ends the connection on others."""

    def __init__(self, body: bytes | None, *, answers: int = 1000, reset: bool = True) -> None:
        self.heads: list[dict[str, str]] = []
        self.connections = 0
        self._body = body
        self._answers = answers if body is not None else 0
        self._reset = reset

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            first, *lines = head.strip().split("\r\n")
            fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            await reader.readexactly(int(fields["content-length"]))
            self.heads.append({"": first, **fields})
            if len(self.heads) > self._answers:
                break
            assert self._body is not None
            size = f"content-length: {len(self._body)}\r\ncontent-type: application/json"
            writer.write(f"HTTP/1.1 200 OK\r\n{size}\r\n\r\n".encode() + self._body)
        if self._reset:
            no_linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            writer.transport.abort()
