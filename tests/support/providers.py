"""Both wire adapters, opened the same way, and vendors that say the same to everyone."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.base import ModelReply, ModelRequest, Provider
from airflow_ai_provider.core.providers.litellm import LitellmProvider
from airflow_ai_provider.core.providers.openai_compatible import OpenAICompatibleProvider
from airflow_ai_provider.core.providers.vendors import address_of
from airflow_ai_provider.core.settings import Endpoint
from airflow_ai_provider.errors import VendorError, VendorPermanentError, VendorTransientError

KEY = "sk-0123456789-secret"
PROMPT = "the private words of a customer"
TRANSIENT, PERMANENT = VendorTransientError, VendorPermanentError
ADAPTERS = ("openai_compatible", "litellm")


def provider(
    base: str | None,
    *,
    adapter: str = "litellm",
    model: str = "openai/gpt-4o-mini",
    key: str | None = KEY,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> Provider:
    deployment, endpoint = Deployment(model=model, **extra), Endpoint(base, key, headers or {})
    if adapter == "litellm":
        return LitellmProvider("small", deployment, endpoint)
    return OpenAICompatibleProvider("small", address_of("small", deployment, endpoint), concurrency=8)


def request(
    prompt: Any = PROMPT, *, within: float = 20, schema: dict[str, Any] | None = None, **more: Any
) -> ModelRequest:
    return ModelRequest(uuid.uuid4().hex, [{"role": "user", "content": prompt}], 50, schema, within, **more)


async def ask(asked: Provider, prompt: Any = PROMPT, **more: Any) -> ModelReply:
    """One answer; ``more`` is what ``request`` takes."""
    try:
        return await asked.complete(request(prompt, **more))
    finally:
        await asked.close()


async def failure(asked: Provider, prompt: Any = PROMPT, **more: Any) -> VendorError:
    with pytest.raises(VendorError) as caught:
        await ask(asked, prompt, **more)
    return caught.value


@dataclass(frozen=True)
class Expected:
    """What a failed attempt is to us."""

    family: type[VendorError]
    kind: str
    status: int | None
    billed: bool
    retry_after: float | None = None

    @classmethod
    def of(cls, error: VendorError) -> Expected:
        return cls(type(error), error.kind, error.http_status, error.billed, error.retry_after)


@asynccontextmanager
async def answering(
    status: int, body: bytes, headers: dict[str, str] | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A server that says the same to everyone; its URL."""

    async def handle(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(status=status, body=body, headers={"Content-Type": "application/json", **(headers or {})})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def completion(content: Any = "yes", *, finish: Any = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
    """The body of a chat completion as OpenAI sends it."""
    said = {"role": "assistant", "content": content, **message}
    figures = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return {
        "id": "chatcmpl-9",
        "object": "chat.completion",
        "created": 1,
        "model": "x",
        "choices": [{"index": 0, "finish_reason": finish, "message": said}],
        "usage": figures if usage is None else {**figures, **usage},
    }


def anthropic_body(**usage: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": "yes"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 7, **usage},
    }


def gemini_body(**usage: Any) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": "yes"}]}
    return {
        "responseId": "gem-1",
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 7, "totalTokenCount": 107, **usage},
    }
