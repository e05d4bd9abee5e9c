"""What is litellm's own; what both adapters have in common is in test_providers_parity.py."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from support.providers import KEY, PERMANENT, TRANSIENT, Expected, answering, ask, failure, provider

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.base import ModelRequest, http_error, not_charged
from airflow_ai_provider.core.providers.litellm import LitellmProvider, _import_litellm
from airflow_ai_provider.core.settings import Endpoint
from airflow_ai_provider.errors import PolicyError, VendorTransientError
from airflow_ai_provider.testing.vendor import VendorDouble


async def test_without_a_key_nothing_is_sent(vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for model in ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5"):
        error = await failure(provider(vendor.base_url, model=model, key=None))
        assert (type(error), error.kind, error.billed) == (PERMANENT, "unauthorized", False)
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


OTHERS = ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.0-flash", "hosted_vllm/qwen", "openrouter/a/b", "openai/x"]
HALF = b'{"choices": [{"mess'
LIMITED_IN_A_200 = b'{"error": {"message": "slow down", "code": 429}}'
OVERLOADED = b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}'


@pytest.mark.parametrize("model", OTHERS)
async def test_other_providers_of_litellm_are_understood_the_same_way(model: str) -> None:
    """Some map half a body to 422: that was an answer, and may have been charged. An error inside a 200 was none."""
    async with answering(529, OVERLOADED, {"retry-after": "7"}) as url:
        error = await failure(provider(url, model=model))
    assert Expected.of(error) == Expected(TRANSIENT, "server_error", 529, billed=False, retry_after=7)
    async with answering(401, b"{}") as url:
        error = await failure(provider(url, model=model))
    assert (type(error), error.kind, error.billed) == (PERMANENT, "unauthorized", False)
    async with answering(200, HALF) as url:
        error = await failure(provider(url, model=model))
    assert (type(error), error.billed) == (TRANSIENT, True)
    async with answering(200, LIMITED_IN_A_200, {"retry-after": "7"}) as url:
        error = await failure(provider(url, model=model))
    assert Expected.of(error) == Expected(TRANSIENT, "rate_limited", 429, billed=False, retry_after=7)


@pytest.mark.parametrize("model", OTHERS)
async def test_no_provider_of_litellm_follows_a_redirect_or_reads_a_flood(vendor: VendorDouble, model: str) -> None:
    async with answering(307, b"", {"location": f"{vendor.base_url}/chat/completions"}) as url:
        error = await failure(provider(url, model=model))
    assert Expected.of(error) == Expected(PERMANENT, "redirected", 307, billed=False)
    async with answering(200, b" " * (17 * 2**20)) as url:
        error = await failure(provider(url, model=model))
    assert Expected.of(error) == Expected(PERMANENT, "oversized", None, billed=True)
    assert vendor.stats().requests == 0


async def test_a_spent_balance_is_permanent_and_an_ordinary_limit_of_gemini_is_not() -> None:
    spent = b'{"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to go on"}}'
    async with answering(400, spent) as url:
        error = await failure(provider(url, model="anthropic/claude-sonnet-4-5"))
    assert (type(error), error.kind) == (PERMANENT, "quota_exhausted")
    limited = b'{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota"}}'
    async with answering(429, limited) as url:
        error = await failure(provider(url, model="gemini/gemini-2.0-flash"))
    assert (type(error), error.kind) == (TRANSIENT, "rate_limited")


async def test_anthropics_quota_arrives(vendor: VendorDouble) -> None:
    body = (
        b'{"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [{"type": '
        b'"text", "text": "yes"}], "stop_reason": "end_turn", "usage": {"input_tokens": 10, "output_tokens": 7}}'
    )
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2020-01-01T00:00:00Z",
        "anthropic-ratelimit-tokens-remaining": "39000",
    }
    async with answering(200, body, headers) as url:
        limits = (await ask(provider(url, model="anthropic/claude-sonnet-4-5"))).limits
    assert limits
    assert (limits.requests, limits.requests_remaining, limits.requests_reset) == (50, 49, 0)
    assert (limits.tokens, limits.tokens_remaining, limits.tokens_reset) == (None, 39000, None)


def test_only_a_refusal_that_is_certain_is_not_charged() -> None:
    certain = {301, 302, 303, 307, 308, *range(400, 500), 500, 503, 529} - {408, 409, 424}
    assert {status for status in range(100, 600) if not_charged(status)} == certain
    errors = {status: http_error("small", status) for status in range(300, 600)}
    assert {status for status, error in errors.items() if not error.billed} == certain
    transient = {status for status, error in errors.items() if isinstance(error, TRANSIENT)}
    assert transient == {408, 409, 424, 425, 429, 498, *range(500, 600)}


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
