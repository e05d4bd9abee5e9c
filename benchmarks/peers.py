"""What users would write instead: each client sends the same rows its own way. Run by ``lab.Client``.

Each function is what the client's documentation shows, at its best settings: one session, its own pool as wide as the
concurrency, a semaphore around. ``retries`` leaves the client's own default retries on. Nothing is imported before it
is needed: each runs in an environment that has its own client only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any

from lab import MAX_TOKENS, MODEL, Figures, Stopwatch, answer, texts

Send = Callable[[str], Awaitable[Any]]
_WARM_UP = 50


def raw_aiohttp(base_url: str, first: int, rows: int, concurrency: int, loop: str = "asyncio") -> Figures:
    import json

    import aiohttp

    async def work() -> Figures:
        connector = aiohttp.TCPConnector(limit=concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def send(text: str) -> str:
                body = json.dumps({"model": MODEL, "max_tokens": MAX_TOKENS, "messages": _messages(text)})
                headers = {"Authorization": "Bearer none", "Content-Type": "application/json"}
                async with session.post(f"{base_url}/chat/completions", data=body, headers=headers) as response:
                    response.raise_for_status()
                    return str(json.loads(await response.read())["choices"][0]["message"]["content"])

            return await _measured(send, first, rows, concurrency, f"aiohttp {version('aiohttp')}")

    return _run(work, loop)


def litellm(base_url: str, first: int, rows: int, concurrency: int, retries: bool = False) -> Figures:
    """``litellm.acompletion`` under a semaphore."""
    import os

    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm as client

    client.suppress_debug_info = True
    more = {} if retries else {"max_retries": 0}

    async def send(text: str) -> str:
        response = await client.acompletion(
            model=f"openai/{MODEL}",
            api_base=base_url,
            api_key="none",
            max_tokens=MAX_TOKENS,
            messages=_messages(text),
            **more,
        )
        return str(response.choices[0].message.content)

    return _run(lambda: _measured(send, first, rows, concurrency, f"litellm {version('litellm')}"), "asyncio")


def openai_sdk(
    base_url: str, first: int, rows: int, concurrency: int, loop: str = "asyncio", retries: bool = False
) -> Figures:
    """The SDK over its aiohttp transport."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    more = {} if retries else {"max_retries": 0}

    async def work() -> Figures:
        async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=DefaultAioHttpClient(), **more) as client:

            async def send(text: str) -> str:
                response = await client.chat.completions.create(
                    model=MODEL,
                    max_tokens=MAX_TOKENS,
                    messages=_messages(text),
                )
                return str(response.choices[0].message.content)

            return await _measured(send, first, rows, concurrency, f"openai {version('openai')}")

    return _run(work, loop)


async def _measured(send: Send, first: int, rows: int, concurrency: int, name: str) -> Figures:
    slots = asyncio.Semaphore(concurrency)

    async def guarded(text: str) -> Any:
        async with slots:
            return await send(text)

    async def all_of(some: Sequence[str]) -> int:
        """How many got no answer."""
        done = await asyncio.gather(*map(guarded, some), return_exceptions=True)
        return sum(not isinstance(outcome, str) for outcome in done)

    await all_of(texts(first + rows, min(concurrency, _WARM_UP)))
    some = texts(first, rows)
    watch = Stopwatch()
    return watch.figures(rows, lost=await all_of(some), version=name)


def _messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def _run(work: Callable[[], Any], loop: str) -> Figures:
    if loop == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work())
    return asyncio.run(work())


if __name__ == "__main__":
    answer({"raw_aiohttp": raw_aiohttp, "litellm": litellm, "openai_sdk": openai_sdk})
