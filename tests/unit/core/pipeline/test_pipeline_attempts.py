"""How often a row is asked for: counted once per deployment, whatever the circuit, the vendor and the clock do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pipeline import House, deployment, invoiced, policy

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.plan import plan_spend
from airflow_ai_provider.core.pipeline import retry, transitions
from airflow_ai_provider.core.providers.base import ModelReply, ModelRequest
from airflow_ai_provider.core.providers.openai_compatible import OpenAICompatibleProvider
from airflow_ai_provider.core.ratelimit import feedback
from airflow_ai_provider.testing.behaviour import Faults, Latency, RawAnswer
from airflow_ai_provider.testing.vendor import VendorDouble

ATTEMPTS = 3
RETRY = {"attempts": ATTEMPTS, "wait": 0.001, "max_wait": 0.002}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """Its circuits are probed every few hundredths of a second, so that a row meets many probes."""
    monkeypatch.setattr(feedback, "FIRST_PROBE", 0.02)
    monkeypatch.setattr(transitions, "_LOOK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(retry, "LEAST_PATIENCE", 3.0)
    with VendorDouble(retry_after=0.01) as vendor:
        yield House(tmp_path, vendor)


def fragile(**changes: object) -> dict[str, object]:
    """A deployment whose circuit opens at the first failure."""
    return deployment(breaker={"failures": 1, "probe_every": 1}, **changes)


def worst(house: House, rows: list[str]) -> int:
    return plan_spend(house.job(rows), Caller("dag", "run-1", "answer"), house.settings).worst_nano


@pytest.mark.parametrize("fault", ["500", "502", "503", "408", "drop_before", "drop_after", "drop_midway", "malformed"])
def test_a_row_has_its_attempts_once_over_all_probes(house: House, fault: str) -> None:
    """Each probe that the circuit admits is one of the row's attempts; the worst case of the plan holds."""
    assert house.vendor is not None
    house.write(policy(deployments={"small": fragile()}, retry=RETRY))
    row = [f"question [[double:{fault}]]"]
    bound = worst(house, row)
    outcome = house.run(row)
    assert outcome.column("status") == ["error"]
    assert len(house.requests()) == (2 if fault == "408" else ATTEMPTS)
    assert bound >= house.spent() >= invoiced(house.vendor)
    assert house.left_over() == (0, 0)


_ERRORS = {
    "error500": '{"error": {"code": 500, "message": "failed"}}',
    "error504": '{"error": {"code": 504}}',
    "charged429": '{"error": {"code": 429}, "usage": {"prompt_tokens": 5, "completion_tokens": 5}}',
    "nothing": "{}",
}


@pytest.mark.parametrize("kind", list(_ERRORS))
def test_errors_within_http_200_are_attempts(house: House, kind: str) -> None:
    """Also a 429 that may have been charged; and over all probes of a circuit."""
    assert house.vendor is not None
    house.vendor.configure(answers={name: RawAnswer(body) for name, body in _ERRORS.items()})
    house.write(policy(deployments={"small": fragile()}, retry=RETRY))
    row = [f"question [[double:{kind}]]"]
    bound = worst(house, row)
    assert house.run(row).column("status") == ["error"]
    assert len(house.requests()) == (2 if kind == "error504" else ATTEMPTS)
    assert bound >= house.spent() >= invoiced(house.vendor)


def test_two_deployments_have_their_attempts_each_once(tmp_path: Path, house: House) -> None:
    """A row that both charge for and neither answers costs no more than the plan's worst case, which it reaches."""
    assert house.vendor is not None
    deployments = {"small": fragile(), "other": fragile(concurrency=4)}
    house.write(policy(deployments=deployments, tiers={"simple": ["small", "other"]}, retry=RETRY))
    row = ["question [[double:drop_after]]"]
    bound = worst(house, row)
    house.run(row)
    assert len(house.requests(deployment="small")) == len(house.requests(deployment="other")) == ATTEMPTS
    assert house.spent() == bound
    assert invoiced(house.vendor) > 0


def test_a_429_uses_up_no_attempt(house: House) -> None:
    """Four refusals and two failures leave a row its third attempt."""
    assert house.vendor is not None
    house.write(policy(retry=RETRY))
    house.vendor.configure(script=["429", "429", "429", "500", "429", "drop_after"])
    (row,) = house.run(["patient"]).rows
    assert row["status"] == "ok", row["error"]
    assert len(house.requests(error_type="rate_limited")) == 4
    assert house.vendor.stats().requests == 7


def test_a_row_does_not_wait_for_ever_for_429s(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends once it has waited for as long as its retries might have taken; nothing is charged."""
    assert house.vendor is not None
    monkeypatch.setattr(retry, "LEAST_PATIENCE", 0.5)
    house.write(policy(retry={"attempts": 2, "wait": 0, "max_wait": 0}))
    house.vendor.configure(faults=Faults(rate_429=1.0), retry_after=0.0)
    (row,) = house.run(["refused"]).rows
    assert row["status"] == "error"
    assert row["error"].startswith("rate_limited")
    assert 3 <= house.vendor.stats().requests <= 12  # 0.05 to 0.1 s, doubling, then 0.5 to 1 s
    assert house.spent() == 0
    assert house.left_over() == (0, 0)


@pytest.mark.parametrize("retry_after", [0.01, 120.0])
def test_a_429_sends_a_row_to_the_next_deployment(house: House, tmp_path: Path, retry_after: float) -> None:
    """After as many as it has attempts, or at once where the vendor wants longer than a retry may wait."""
    assert house.vendor is not None
    with VendorDouble(faults=Faults(rate_429=1.0), retry_after=retry_after) as busy:
        first = deployment(connection=None, api_base=busy.base_url, adapter="openai_compatible")
        tiers = {"simple": ["first", "small"]}
        house.write(policy(deployments={"first": first, "small": deployment()}, tiers=tiers, retry=RETRY))
        (row,) = house.run(["elsewhere"]).rows
        assert (row["status"], row["deployment"]) == ("ok", "small")
        assert busy.stats().requests == (ATTEMPTS if retry_after < 1 else 1)
    (answered,) = house.requests(status="ok")
    assert (answered["fallback_from"], answered["fallback_reason"]) == ("first", "rate_limited")


def test_a_row_comes_back_to_a_deployment_that_was_limited(house: House) -> None:
    """The other one has failed for good: the one that said 429 still has its attempts."""
    assert house.vendor is not None
    with VendorDouble(script=["429"] * 5, retry_after=0.01) as busy:
        first = deployment(connection=None, api_base=busy.base_url, adapter="openai_compatible")
        tiers = {"simple": ["first", "small"]}
        house.write(policy(deployments={"first": first, "small": deployment()}, tiers=tiers, retry=RETRY))
        house.vendor.configure(faults=Faults(rate_500=1.0))
        (row,) = house.run(["back again"]).rows
    assert (row["status"], row["deployment"]) == ("ok", "first")


def test_a_refused_connection_is_an_attempt(house: House) -> None:
    """It costs nothing, but the deployment is down: the row ends after its attempts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        down = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        place = deployment(connection=None, api_base=down, adapter="openai_compatible")
        house.write(policy(deployments={"small": place}, retry=RETRY))
        (row,) = house.run(["nobody there"]).rows
    assert row["error"].startswith("connection_refused")
    assert [each["status"] for each in house.requests()] == ["error"] * ATTEMPTS
    assert house.spent() == 0


# Time-outs


def test_a_timed_out_row_is_asked_once_more_with_twice_the_time(house: House) -> None:
    """And then ends, paid twice at most, with what to do in its error."""
    assert house.vendor is not None
    house.write(policy(deployments={"small": deployment(timeout=1)}, retry=RETRY))
    bound = worst(house, ["hangs"])
    house.vendor.configure(faults=Faults(rate_hang_billed=1.0))
    (row,) = house.run(["hangs"]).rows
    assert row["error"].startswith("timeout: ")
    assert row["error"].endswith("raise deployments.small.timeout or lower max_tokens")
    first, second = house.requests()
    assert {first["error_type"], second["error_type"]} == {"timeout"}
    assert second["latency_ms"] >= 1.8 * 1000
    assert bound >= house.spent() >= invoiced(house.vendor) > 0


def test_a_slow_answer_comes_within_the_longer_time(house: House) -> None:
    """A body that trickles in over 3 s is cut at 1 s, and read whole the second time."""
    assert house.vendor is not None
    house.write(policy(deployments={"small": deployment(timeout=1, timeout_max=60)}, retry=RETRY))
    house.vendor.configure(faults=Faults(rate_slow=1.0), slow_seconds=3.0)
    (row,) = house.run(["slow"]).rows
    assert row["status"] == "ok", row["error"]
    assert sorted(each["status"] for each in house.requests()) == ["ok", "unknown"]
    assert house.spent() >= invoiced(house.vendor) > 0


def test_without_a_longer_time_out_the_row_ends_at_the_first(house: House) -> None:
    assert house.vendor is not None
    house.write(policy(deployments={"small": deployment(timeout=1, timeout_max=1)}, retry=RETRY))
    house.vendor.configure(faults=Faults(rate_hang_billed=1.0))
    (row,) = house.run(["hangs"]).rows
    assert row["error"].startswith("timeout: ")
    assert len(house.requests()) == 1


def test_a_timed_out_row_goes_to_the_next_deployment(house: House) -> None:
    """It has a time-out of its own."""
    assert house.vendor is not None
    with VendorDouble(faults=Faults(rate_hang=1.0)) as hanging:
        place = deployment(connection=None, api_base=hanging.base_url, adapter="openai_compatible", timeout=1)
        first = {**place, "timeout_max": 1}
        tiers = {"simple": ["first", "small"]}
        house.write(policy(deployments={"first": first, "small": deployment()}, tiers=tiers, retry=RETRY))
        (row,) = house.run(["elsewhere"]).rows
        assert hanging.stats().requests == 1
    assert (row["status"], row["deployment"]) == ("ok", "small")


@pytest.mark.parametrize(("deadline", "requests"), [(2, 1), (60, 2)])
def test_the_second_time_out_is_longer_or_there_is_none(house: House, deadline: int, requests: int) -> None:
    """Where the row's deadline leaves no more than the time that was too short, the row ends."""
    assert house.vendor is not None
    house.write(
        policy(deployments={"small": deployment(timeout=1)}, retry=RETRY, deadline={"row": deadline}),
    )
    house.vendor.configure(faults=Faults(rate_hang_billed=1.0))
    (row,) = house.run(["hangs"]).rows
    assert row["status"] == "error"
    assert len(house.requests()) == requests


@pytest.mark.parametrize("fault", ["504", "408"])
def test_a_servers_own_time_out_is_tried_once_more(house: House, fault: str) -> None:
    """A gateway that gave up may have been charged for: twice at most."""
    assert house.vendor is not None
    house.write(policy(retry=RETRY))
    (row,) = house.run([f"question [[double:{fault}]]"]).rows
    assert row["error"].startswith("timeout")
    assert "raise deployments" not in row["error"]
    assert len(house.requests()) == 2


def test_a_loop_that_was_held_up_costs_a_row_no_more_than_one_attempt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was there in time, and this process looked too late: whatever it counts as, the row is answered."""
    assert house.vendor is not None
    house.write(policy(deployments={"small": deployment(timeout=1)}, retry=RETRY))
    house.vendor.configure(latency=Latency(0.3))
    complete, held_up = OpenAICompatibleProvider.complete, []

    async def complete_late(self: OpenAICompatibleProvider, request: ModelRequest) -> ModelReply:
        if not held_up:
            held_up.append(asyncio.get_running_loop().call_later(0.1, time.sleep, 2.0))
        return await complete(self, request)

    monkeypatch.setattr(OpenAICompatibleProvider, "complete", complete_late)
    bound = worst(house, ["late"])
    (row,) = house.run(["late"]).rows
    assert row["status"] == "ok", row["error"]
    assert 1 <= len(house.requests()) <= 2
    assert bound >= house.spent() >= invoiced(house.vendor) > 0


def test_a_connection_that_is_not_made_in_time_is_no_time_out(house: House) -> None:
    """Nothing was sent: nothing is charged, and the row has all its attempts."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # room for one that nobody accepts; what comes then is not answered
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        place = deployment(connection=None, api_base=address, adapter="openai_compatible", timeout=1)
        house.write(policy(deployments={"small": place}, retry=RETRY))
        (row,) = house.run(["never connected"]).rows
    assert row["error"].startswith("connection_refused")
    assert [each["status"] for each in house.requests()] == ["error"] * ATTEMPTS
    assert house.spent() == 0


def test_a_batchs_deadline_ends_a_request_that_hangs(house: House) -> None:
    """At the deadline, not at the time-out; it is not started again."""
    assert house.vendor is not None
    house.write(policy(deployments={"small": deployment(timeout=60)}, retry=RETRY, deadline={"batch": 1}))
    house.vendor.configure(faults=Faults(rate_hang_billed=1.0))
    (row,) = house.run(["hangs"]).rows
    assert row["error"].startswith(("timeout", "deadline"))
    assert "raise deployments" not in row["error"]
    (request,) = house.requests()
    assert (request["status"], request["error_type"]) == ("unknown", "timeout")
    assert house.spent() >= invoiced(house.vendor) > 0


def test_both_adapters_give_a_time_out_one_longer_try(house: House) -> None:
    assert house.vendor is not None
    place = deployment(timeout=1, adapter="litellm")
    house.write(policy(deployments={"small": place}, retry=RETRY))
    house.vendor.configure(faults=Faults(rate_hang_billed=1.0))
    (row,) = house.run(["hangs"]).rows
    assert row["error"].endswith("raise deployments.small.timeout or lower max_tokens")
    assert [each["error_type"] for each in house.requests()] == ["timeout", "timeout"]


@pytest.mark.parametrize("raised", [RuntimeError, TimeoutError, ValueError, KeyError])
def test_an_error_that_no_adapter_expects_costs_its_row_and_leaves_no_attempt_open(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raised: type[Exception]
) -> None:
    """The request may have been charged, so it is never sent again. What the error says may quote the row."""
    assert house.vendor is not None
    house.write(policy(retry=RETRY))
    complete = OpenAICompatibleProvider.complete

    async def complete_badly(self: OpenAICompatibleProvider, request: ModelRequest) -> ModelReply:
        reply = await complete(self, request)
        if "bad" in str(request.messages):
            raise raised("bad secret")
        return reply

    monkeypatch.setattr(OpenAICompatibleProvider, "complete", complete_badly)
    rows = ["good", "bad secret", "fine"]
    bound = worst(house, rows)
    outcome = house.run(rows)
    assert outcome.column("status") == ["ok", "error", "ok"]
    assert outcome.rows[1]["error"].startswith(f"unexpected: small: {raised.__name__}")
    assert "secret" not in outcome.rows[1]["error"] + caplog.text
    assert len(house.requests()) == 3
    assert [each["status"] for each in house.requests() if each["error_type"] == "unexpected"] == ["unknown"]
    assert bound >= house.spent() >= invoiced(house.vendor)
    assert house.left_over() == (0, 0)
