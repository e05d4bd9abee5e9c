"""Each of ``support.vendor_answers`` through the gateway, over both adapters: row, ledger, hold, retry, pace, store."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, deployment, policy
from support.providers import ADAPTERS
from support.vendor_answers import CASES, OUTPUT, Case

from airflow_ai_provider.core.providers.base import ModelReply, ModelRequest
from airflow_ai_provider.core.providers.litellm import LitellmProvider
from airflow_ai_provider.core.providers.openai_compatible import OpenAICompatibleProvider
from airflow_ai_provider.core.ratelimit.feedback import said_by
from airflow_ai_provider.errors import VendorError
from airflow_ai_provider.testing.behaviour import RawAnswer
from airflow_ai_provider.testing.vendor import VendorDouble

MAX_TOKENS = 50
MARKER = re.compile(r"\[\[double:\w+(\*1)?\]\]")
NOT_WHOLE = ("truncated", "filtered", "refused", "empty")


@dataclass
class Seen:
    """What came of a case."""

    row: dict[str, Any]
    attempts: list[dict[str, Any]]
    """Its rows of the ledger, in order."""
    invoice: list[int]
    """Nano-dollars of each line."""
    requests: int
    said: list[str] = field(default_factory=list)
    """What its failures told pacing."""
    left_over: tuple[int, int] = (0, 0)
    again: dict[str, Any] | None = None
    """The row of another run that asks the same."""


def test_the_zoo_is_large_and_its_names_are_different() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 120


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[Seen]]]:
    """What came of all cases, by adapter: each adapter's are run once, and when they are first asked for."""
    done: dict[str, list[Seen]] = {}
    with pytest.MonkeyPatch.context() as patch, VendorDouble(honour_idempotency=False) as vendor:

        def seen(adapter: str) -> list[Seen]:
            if adapter not in done:
                done[adapter] = run_all(adapter, CASES, vendor, tmp_path_factory.mktemp(adapter), patch)
            return done[adapter]

        yield seen


def run_all(
    adapter: str, cases: list[Case], vendor: VendorDouble, folder: Path, patch: pytest.MonkeyPatch
) -> list[Seen]:
    """Run cases, each as one row: a failure at a deployment of its own; answers together in one job, and once more in
    another run."""
    failures = listen(patch)
    vendor.configure(answers={name_of(number): wire_answer(case) for number, case in enumerate(cases)})
    house = House(folder, vendor)
    jobs: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        alike = name_of(number) if fails(case) or case.alone else json.dumps([case.model, case.job], sort_keys=True)
        jobs.setdefault(alike, []).append(number)
    seen: dict[int, Seen] = {}
    for numbers in jobs.values():
        failures.clear()
        seen |= run(house, vendor, adapter, {number: cases[number] for number in numbers}, failures)
    return [seen[number] for number in range(len(cases))]


def run(
    house: House, vendor: VendorDouble, adapter: str, cases: dict[int, Case], failures: list[VendorError]
) -> dict[int, Seen]:
    number, case = next(iter(cases.items()))
    place = f"d{number:03}"
    house.write(
        policy(
            deployments={place: deployment(model=f"openai/{case.model}", adapter=adapter)},
            tiers={"simple": [place]},
            max_tokens=MAX_TOKENS,
            retry={"attempts": 2, "wait": 0.001, "max_wait": 0.002},
            reuse={"scope": "team", "ttl": "1h"},
            escalate={"on": ["schema", "empty"]},
            limit_usd="100",
        )
    )
    vendor.reset()
    rows = [{"id": name_of(number), "text": prompt_of(number, case)} for number, case in cases.items()]
    first = house.run(rows, run_id=f"{place}-first", **case.job)
    left_over, attempts = house.left_over(), house.requests(deployment=place)
    charged = {line.idempotency_key: line.cost_nanodollars for line in vendor.invoice()}
    met = Counter(MARKER.search(request.body["messages"][-1]["content"])[0] for request in vendor.requests())
    again: dict[str, dict[str, Any]] = {}
    if not fails(case):
        again = {row["id"]: row for row in house.run(rows, run_id=f"{place}-again", **case.job).rows}
    seen = {}
    for number, row in zip(cases, first.rows, strict=True):
        own = [attempt for attempt in attempts if attempt["row_key"] == name_of(number)]
        seen[number] = Seen(
            row,
            own,
            [charged[attempt["attempt_id"]] for attempt in own if attempt["attempt_id"] in charged],
            met[MARKER.search(prompt_of(number, cases[number]))[0]],
            [said_by(error) for error in failures],
            left_over,
            again.get(row["id"]),
        )
    return seen


def prompt_of(number: int, case: Case) -> str:
    """A failure is met by the first request alone."""
    return f"{case.prompt} [[double:{name_of(number)}{'*1' if fails(case) else ''}]]"


def listen(patch: pytest.MonkeyPatch) -> list[VendorError]:
    """The failures that adapters raise from now on."""
    heard: list[VendorError] = []
    for adapter in (OpenAICompatibleProvider, LitellmProvider):
        patch.setattr(adapter, "complete", overheard(adapter.complete, heard))
    return heard


def overheard(complete: Callable[..., Any], heard: list[VendorError]) -> Callable[..., Any]:
    async def completed(self: Any, request: ModelRequest) -> ModelReply:
        try:
            reply: ModelReply = await complete(self, request)
        except VendorError as error:
            heard.append(error)
            raise
        return reply

    return completed


def name_of(number: int) -> str:
    return f"c{number:03}"


def fails(case: Case) -> bool:
    return case.row in ("retried", "error")


def wire_answer(case: Case) -> RawAnswer:
    body = case.body if isinstance(case.body, str) else json.dumps(case.body)
    return RawAnswer(body, case.status, case.headers, case.invoice)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_a_vendor_answer(zoo: Callable[[str], list[Seen]], number: int, adapter: str) -> None:
    case, seen = CASES[number], zoo(adapter)[number]
    first = seen.attempts[0]
    retried = case.row == "retried"
    assert (seen.row["status"], seen.requests) == ("ok" if retried else case.row, 2 if retried else 1)
    kind = first["error_type"] if retried else (seen.row["error"] or "").partition(":")[0] or None
    assert kind == case.kind
    expected = {"hold": hold_of(first), "more": case.invoice}.get(str(case.cost), case.cost)
    assert (first["status"], first["cost_nano"]) == (status_in_ledger(case), expected)
    assert seen.left_over == (0, 0)
    assert seen.said == ([case.said] if case.said else [])
    if case.text is not None:
        assert (seen.row["answer"] or "") == case.text
    if case.kind in NOT_WHOLE:
        assert first["error_type"] == case.kind
    paid = sum(attempt["cost_nano"] for attempt in seen.attempts)
    assert paid >= sum(seen.invoice)
    if not any(attempt["status"] == "unknown" for attempt in seen.attempts):
        assert paid == sum(seen.invoice)
    if seen.again is not None:
        assert (seen.again["status"], seen.again["reused"]) == (seen.row["status"], case.reused)


def status_in_ledger(case: Case) -> str:
    if not isinstance(case.cost, int):
        return "unknown"
    return "error" if fails(case) else "ok"


def hold_of(attempt: dict[str, Any]) -> int:
    """The most that a request of one message to ``MODEL`` can cost: bytes as tokens, with the overheads."""
    return int((attempt["prompt_bytes"] + 16 + 64) * 150 + MAX_TOKENS * OUTPUT)
