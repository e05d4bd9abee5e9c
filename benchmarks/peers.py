"""What users would write instead: each client sends the same rows its own way. Run by ``lab.Client``.

Each function is what the client's documentation shows, at its best settings: one session, its own pool as wide as the
concurrency, a semaphore around. ``retries`` leaves the client's own default retries on. Nothing is imported before it
is needed: each runs in an environment that has its own client only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab import MAX_TOKENS, MODEL, Figures, Stopwatch, answer, texts

Send = Callable[[str], Awaitable[Any]]
_WARM_UP = 50


def raw_aiohttp(base_url: str, first: int, rows: int, concurrency: int) -> Figures:
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

    return asyncio.run(work())


def litellm(
    base_url: str, first: int, rows: int, concurrency: int, retries: bool = False, warm_up: int = _WARM_UP
) -> Figures:
    """``litellm.acompletion`` under a semaphore."""
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

    return asyncio.run(_measured(send, first, rows, concurrency, f"litellm {version('litellm')}", warm_up))


def openai_sdk(
    base_url: str, first: int, rows: int, concurrency: int, retries: bool = False, warm_up: int = _WARM_UP
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

            return await _measured(send, first, rows, concurrency, f"openai {version('openai')}", warm_up)

    return asyncio.run(work())


def curator(base_url: str, first: int, rows: int, concurrency: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        llm = _curator(base_url, concurrency)
        llm(texts(first + rows, _WARM_UP), working_dir=f"{folder}/warm")
        some = texts(first, rows)
        watch = Stopwatch()
        done = llm(some, working_dir=f"{folder}/rows")
        return watch.figures(rows, lost=rows - len(done.dataset), version=_curator_version())


def curator_file(base_url: str, source: str, sink: str, folder: str, rows: int, concurrency: int) -> Figures:
    """Parquet to Parquet, reading and keeping answers in ``folder``."""
    _curator(base_url, concurrency)  # what it imports and asks for is not counted
    from datasets import Dataset

    watch = Stopwatch()
    llm = _curator(base_url, concurrency)
    done = llm(Dataset.from_parquet(source, cache_dir=f"{folder}/datasets")["text"], working_dir=folder)
    done.dataset.to_parquet(sink)
    return watch.figures(rows, lost=rows - len(done.dataset), version=_curator_version())


def _curator(base_url: str, concurrency: int) -> Any:
    """curator's OpenAI backend with its limits lifted (by default it sends 3 rows a second), its telemetry off, and
    the token files that it would fetch taken from litellm's package."""
    tokenizers = Path(next(iter(find_spec("litellm").submodule_search_locations))) / "litellm_core_utils/tokenizers"
    os.environ |= {
        "TIKTOKEN_CACHE_DIR": str(tokenizers),
        "TELEMETRY_ENABLED": "false",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    from bespokelabs import curator as client

    logging.disable(logging.WARNING)
    limits = {"max_requests_per_minute": 10_000_000, "max_tokens_per_minute": 10_000_000_000, "max_retries": 0}
    return client.LLM(
        model_name=MODEL,
        backend="openai",
        generation_params={"max_tokens": MAX_TOKENS},
        backend_params={
            **limits,
            "base_url": base_url,
            "api_key": "none",
            "max_concurrent_requests": concurrency,
            "require_all_responses": False,
        },
    )


def _curator_version() -> str:
    return f"curator {version('bespokelabs-curator')}"


async def _measured(send: Send, first: int, rows: int, concurrency: int, name: str, warm_up: int = _WARM_UP) -> Figures:
    slots = asyncio.Semaphore(concurrency)

    async def guarded(text: str) -> Any:
        async with slots:
            return await send(text)

    async def all_of(some: Sequence[str]) -> int:
        """How many got no answer."""
        done = await asyncio.gather(*map(guarded, some), return_exceptions=True)
        return sum(not isinstance(outcome, str) for outcome in done)

    await all_of(texts(first + rows, warm_up))
    some = texts(first, rows)
    watch = Stopwatch()
    return watch.figures(rows, lost=await all_of(some), version=name)


def _messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


if __name__ == "__main__":
    answer({each.__name__: each for each in (raw_aiohttp, litellm, openai_sdk, curator, curator_file)})
