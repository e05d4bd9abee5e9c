"""What one call costs this process by each adapter: CPU milliseconds, and as a ratio to raw aiohttp.

    python benchmarks/bench_adapters.py

The vendor double answers from a process of its own and without latency; a call is a prompt of about 450 characters and
an answer of about 80. Each client runs in a process of its own, in turn, three times; the median counts. CPU time of
the process, not wall time: other load does not show in it.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import uvloop

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.base import ModelRequest
from airflow_ai_provider.core.providers.openai_compatible import OpenAICompatibleProvider
from airflow_ai_provider.core.providers.vendors import address_of
from airflow_ai_provider.core.settings import Endpoint
from airflow_ai_provider.testing.vendor import VendorProcess

_CONCURRENCY = 32
_ROUNDS = 3
_CALLS = {"raw": 4000, "openai_compatible": 4000, "litellm": 600, "bare_litellm": 600}
_TITLES = {
    "raw": "raw aiohttp: post, read, orjson",
    "openai_compatible": "our adapter openai_compatible",
    "litellm": "our adapter litellm",
    "bare_litellm": "bare litellm.acompletion(max_retries=0)",
}
_QUESTION = "Where is my order, and when will it be delivered to the address that I gave you last week? " * 5
_DEPLOYMENT = Deployment(model="openai/gpt-4o-mini", params={"temperature": 0})

Call = Callable[[str], Awaitable[Any]]
Closer = Callable[[], Awaitable[Any]]


def main() -> None:
    found: dict[str, list[float]] = {name: [] for name in _CALLS}
    with VendorProcess() as double:
        for _ in range(_ROUNDS):
            for name, costs in found.items():
                costs.append(_in_a_process(name, double.base_url))
                double.reset()
    medians = {name: statistics.median(costs) for name, costs in found.items()}
    print(f"{'client':42} {'CPU ms/call':>12} {'÷ raw aiohttp':>14} {'÷ bare litellm':>15}")
    for name, cost in medians.items():
        ratios = f"{cost / medians['raw']:14.2f} {cost / medians['bare_litellm']:15.3f}"
        print(f"{_TITLES[name]:42} {cost:12.3f} {ratios}")


def _in_a_process(name: str, base: str) -> float:
    ran = subprocess.run([sys.executable, __file__, name, base], capture_output=True, text=True, check=True)
    return float(json.loads(ran.stdout.splitlines()[-1]))


async def _measure(name: str, base: str) -> float:
    call, close = {"raw": _raw, "openai_compatible": _ours, "litellm": _litellm, "bare_litellm": _bare}[name](base)
    await _many(call, 100)
    started = time.process_time()
    await _many(call, _CALLS[name])
    spent = time.process_time() - started
    await close()
    return 1000 * spent / _CALLS[name]


async def _many(call: Call, count: int) -> None:
    left = iter(range(count))

    async def worker() -> None:
        for number in left:
            await call(f"{number} {_QUESTION}")

    await asyncio.gather(*(worker() for _ in range(_CONCURRENCY)))


def _raw(base: str) -> tuple[Call, Closer]:
    session = aiohttp.ClientSession()

    async def call(text: str) -> str:
        body = {"model": "gpt-4o-mini", "messages": _messages(text), "max_tokens": 100, "temperature": 0}
        headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
        url = f"{base}/chat/completions"
        async with session.post(url, data=orjson.dumps(body), headers=headers) as response:
            return str(orjson.loads(await response.read())["choices"][0]["message"]["content"])

    return call, session.close


def _ours(base: str) -> tuple[Call, Closer]:
    address = address_of("bench", _DEPLOYMENT, _endpoint(base))
    provider = OpenAICompatibleProvider("bench", address, concurrency=_CONCURRENCY)
    return lambda text: provider.complete(_request(text)), provider.close


def _litellm(base: str) -> tuple[Call, Closer]:
    from airflow_ai_provider.core.providers.litellm import LitellmProvider

    provider = LitellmProvider("bench", _DEPLOYMENT, _endpoint(base))
    return lambda text: provider.complete(_request(text)), provider.close


def _bare(base: str) -> tuple[Call, Closer]:
    from airflow_ai_provider.core.providers.litellm import _import_litellm

    litellm = _import_litellm()

    async def call(text: str) -> Any:
        return await litellm.acompletion(
            model="openai/gpt-4o-mini",
            api_base=base,
            api_key="none",
            max_retries=0,
            max_tokens=100,
            temperature=0,
            messages=_messages(text),
        )

    return call, litellm.close_litellm_async_clients


def _endpoint(base: str) -> Endpoint:
    return Endpoint(api_base=base, api_key="none")


def _request(text: str) -> ModelRequest:
    return ModelRequest(uuid.uuid4().hex, _messages(text), 100, None, 60)


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(uvloop.run(_measure(*sys.argv[1:])))
    else:
        main()
