"""One process is told that a quota is used up: all that share the deployment wait, and lose no row."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support.pipeline import House, deployment, policy
from support.providers import completion
from support.web_server import WebThread

RESET = 3.0
"""Seconds that the vendor says its quota takes."""
USED_UP: dict[str, tuple[dict[str, str], Any]] = {
    "OpenAI": ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{RESET:.0f}s"}, {}),
    "IETF": ({"RateLimit": f'"default";r=0;t={RESET:.0f}', "RateLimit-Policy": '"default";q=100;w=60'}, {}),
    "a Unix time in ms": ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "MOMENT"}, {}),
    "only the body": ({}, {"error": {"message": f"Please try again in {RESET:.0f}s."}}),
}


class Limited(WebThread):
    """Refuses one request and answers all others; keeps when each arrived."""

    def __init__(self, headers: dict[str, str], body: Any) -> None:
        super().__init__()
        self._refusal = headers, body
        self._lock = threading.Lock()
        self.arrived: list[float] = []
        self.refused_at = 0.0

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        with self._lock:
            self.arrived.append(time.monotonic())
            refuse = len(self.arrived) == 40
        if not refuse:
            return web.json_response(completion())
        self.refused_at = time.monotonic()
        headers, body = self._refusal
        moment = str(int((time.time() + RESET) * 1000))
        headers = {name: moment if value == "MOMENT" else value for name, value in headers.items()}
        return web.json_response(body, status=429, headers=headers)

    def longest_pause(self) -> float:
        """Seconds, after the refusal, in which nothing arrived."""
        after = [self.refused_at, *(moment for moment in self.arrived if moment > self.refused_at)]
        return max(later - earlier for earlier, later in pairwise(after))


@pytest.mark.parametrize("said", USED_UP)
@pytest.mark.parametrize("workers", ["one", "two on redis"])
def test_a_used_up_quota_holds_all_workers_back(
    request: pytest.FixtureRequest, tmp_path: Path, workers: str, said: str
) -> None:
    cache_url = None if workers == "one" else request.getfixturevalue("redis_url")
    vendor = Limited(*USED_UP[said])
    vendor.start()
    try:
        houses = [House(tmp_path / str(number), vendor, cache_url=cache_url) for number in range(2 if cache_url else 1)]  # type: ignore[arg-type]
        for house in houses:
            house.write(policy(deployments={"small": deployment(rpm=1800, adapter="openai_compatible")}))
            assert house.left_over() == (0, 0)  # the ledger is there: two threads would migrate it at once
        rows = [f"question {number}" for number in range(120)]
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda house: house.run(rows), houses))
    finally:
        vendor.stop()
    assert [outcome.summary.ok for outcome in outcomes] == [120] * len(houses)
    assert vendor.longest_pause() >= RESET - 1.0
