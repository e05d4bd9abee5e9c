"""When every call or answer of a job fails alike: it ends early, says why once, and costs next to nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support.pipeline import LOG, House, deployment, invoiced, policy
from support.providers import ADAPTERS, completion
from support.web_server import WebThread
from test_pipeline_review_path import items

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.errors import AIProviderError, JobGivenUp, JobGivenUpForNow
from airflow_ai_provider.testing.behaviour import Faults, Latency, RawAnswer
from airflow_ai_provider.testing.vendor import VendorDouble

AT_ONCE = 16
ROWS = [f"question {number}" for number in range(500)]
UNTIL_GIVEN_UP = 50 + 3 * 25
"""Most requests of a job that is given up after 50 equal rows: rows end a little after their calls, and three batches
of 25 are under way at a time."""
SECRET = "s3cr3t"
both = pytest.mark.parametrize("adapter", ADAPTERS)


def given_up(house: House, rows: list[str] = ROWS, **job: Any) -> AIProviderError:
    """The error that a job over the rows ends with; nothing is left under way."""
    with pytest.raises((JobGivenUp, JobGivenUpForNow)) as caught:
        house.run(rows, **job)
    assert house.left_over() == (0, 0)
    return caught.value


def one(house: House, adapter: str = "openai_compatible", **changes: Any) -> House:
    """A route of one deployment."""
    route = {name: changes.pop(name) for name in list(changes) if name in ("escalate", "max_tokens", "retry")}
    house.write(policy(deployments={"small": deployment(concurrency=AT_ONCE, adapter=adapter, **changes)}, **route))
    return house


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> House:
    return House(tmp_path, vendor)


REFUSALS = {
    "401": (Faults(rate_401=1.0), ("unauthorized", "HTTP 401", "invalid_api_key", "check the API key of connection")),
    "403": (Faults(rate_403=1.0), ("forbidden", "HTTP 403", "check the rights")),
    "404": (Faults(rate_404=1.0), ("not_found", "HTTP 404", "model_not_found", "check the deployment's model")),
    "422": (Faults(rate_422=1.0), ("unprocessable", "HTTP 422", "check params")),
    "quota": (Faults(rate_insufficient_quota=1.0), ("quota_exhausted", "HTTP 429", "check balance")),
    "redirect": (Faults(rate_redirect=1.0), ("redirected", "HTTP 307", "check api_base")),
}


@both
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_refuses_every_row_ends_the_job_with_one_message(
    house: House, vendor: VendorDouble, adapter: str, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults, words = REFUSALS[refusal]
    one(house, adapter)
    vendor.configure(faults=faults, latency=Latency(0.02))
    with caplog.at_level(logging.WARNING):
        error = given_up(house)
    assert isinstance(error, JobGivenUp)
    assert vendor.stats().requests <= 20 + AT_ONCE
    assert all(word in str(error) for word in ("deployment small", "connection vendor", "127.0.0.1", *words)), error
    assert [record for record in caplog.records if record.name == LOG.name] == []
    assert items(house) == {}
    assert house.spent() == 0 == invoiced(vendor)


def test_a_refused_key_is_one_refusal_also_where_each_has_a_code_of_its_own(house: House, vendor: VendorDouble) -> None:
    one(house)
    names = [f"y{number}" for number in range(100)]
    bodies = {name: json.dumps({"error": {"code": f"req_{name}", "message": "no"}}) for name in names}
    vendor.configure(script=names, answers={name: RawAnswer(body, 401) for name, body in bodies.items()})
    assert "unauthorized" in str(given_up(house, ROWS[:100]))
    assert vendor.stats().requests <= 20 + AT_ONCE
    assert items(house) == {}


def test_small_batches_that_end_before_it_is_known_leave_no_review_items(house: House, vendor: VendorDouble) -> None:
    """The third batch shows that the parameter is wrong: until then nobody could tell that it was no row's fault."""
    one(house)
    vendor.configure(faults=Faults(rate_422=1.0))
    error = given_up(house, batch_rows=4)
    assert "unprocessable" in str(error)
    assert items(house) == {}


def test_what_was_refused_is_tried_once_the_key_is_mended_and_what_was_paid_is_kept(
    house: House, vendor: VendorDouble
) -> None:
    one(house)
    vendor.configure(script=["ok"] * 30, faults=Faults(rate_401=1.0))
    given_up(house, ROWS[:200])
    assert len(house.requests(status="ok")) == 30
    vendor.configure(faults=Faults())
    outcome = house.run(ROWS[:200])
    assert outcome.column("status") == ["ok"] * 200
    assert outcome.summary.reused == 30
    assert house.spent() == invoiced(vendor)


def test_a_few_rows_that_are_refused_among_good_ones_end_nothing(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(faults=Faults(rate_422=0.4))
    outcome = house.run(ROWS[:200])
    assert 0 < outcome.summary.error < 200
    assert outcome.summary.ok + outcome.summary.error == 200
    assert len(items(house)) == outcome.summary.error


def test_fewer_rows_than_it_takes_to_know_are_rows_for_a_person(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(faults=Faults(rate_422=1.0))
    outcome = house.run(ROWS[:5])
    assert outcome.column("status") == ["error"] * 5
    assert len(items(house)) == 5


def test_a_refused_key_of_few_rows_is_no_matter_of_the_rows(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(faults=Faults(rate_401=1.0))
    outcome = house.run(ROWS[:5])
    assert outcome.column("status") == ["error"] * 5
    assert outcome.summary.errors == {"unauthorized": 5}
    assert items(house) == {}


@pytest.mark.parametrize("fault", ["content_policy", "context_length"])
def test_contents_that_a_vendor_refuses_say_nothing_of_the_deployment(
    house: House, vendor: VendorDouble, fault: str
) -> None:
    one(house)
    vendor.configure(faults=Faults(**{f"rate_{fault}": 1.0}))
    outcome = house.run(ROWS[:40])
    assert outcome.column("status") == ["error"] * 40


def test_another_deployment_answers_instead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with VendorDouble(faults=Faults(rate_401=1.0)) as first, VendorDouble() as second:
        house = House(tmp_path, second)
        refusing = deployment(
            connection=None, api_base=first.base_url, adapter="openai_compatible", concurrency=AT_ONCE
        )
        house.write(
            policy(deployments={"first": refusing, "second": deployment()}, tiers={"simple": ["first", "second"]})
        )
        with caplog.at_level(logging.WARNING, logger=LOG.name):
            outcome = house.run(ROWS[:300])
        assert outcome.column("status") == ["ok"] * 300
        assert first.stats().requests <= 20 + AT_ONCE
    (warning,) = caplog.records
    assert "deployment first" in warning.message
    assert "go to other deployments" in warning.message
    assert items(house) == {}


def test_two_refused_deployments_are_both_named(tmp_path: Path) -> None:
    with VendorDouble(faults=Faults(rate_401=1.0)) as first, VendorDouble(faults=Faults(rate_404=1.0)) as second:
        house = House(tmp_path, second)
        other = deployment(connection=None, api_base=first.base_url, adapter="openai_compatible")
        house.write(policy(deployments={"first": other, "second": deployment()}, tiers={"simple": ["first", "second"]}))
        error = given_up(house)
    assert "deployment first" in str(error)
    assert "deployment second" in str(error)


def test_a_key_that_is_revoked_on_the_way_ends_the_job(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(script=["ok"] * 100, faults=Faults(rate_401=1.0), latency=Latency(0.01))
    error = given_up(house)
    assert "unauthorized" in str(error)
    assert vendor.stats().requests <= 100 + 20 + AT_ONCE


# Addresses


class Site(WebThread):
    """Answers every request in the same way, and counts them."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__()
        self.requests = 0
        self._said = status, body, headers

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        self.requests += 1
        status, body, headers = self._said
        return web.Response(status=status, body=body, headers=headers)


@contextmanager
def site(status: int, body: bytes, **headers: str) -> Iterator[Site]:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    served = Site(status, body, said)
    served.start()
    try:
        yield served
    finally:
        served.stop()


PAGE = f"<html><form action='/login?token={SECRET}'></form></html>".encode()
ADDRESSES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "a login page": (200, PAGE, {"content_type": "text/html; charset=utf-8"}),
    "a page that is not there": (404, PAGE, {"content_type": "text/html"}),
    "a redirect": (302, b"", {"location": f"https://login.example/?token={SECRET}"}),
    "another API": (200, b'{"status": "healthy"}', {"content_type": "application/json"}),
    "plain text": (200, b"It works!", {"content_type": "text/plain"}),
    "nothing": (200, b"", {"content_type": "application/json"}),
}


@both
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_wrong_address_costs_a_few_holds_at_most(tmp_path: Path, adapter: str, address: str) -> None:
    status, body, headers = ADDRESSES[address]
    with site(status, body, **headers) as served:
        house = one(House(tmp_path, served), adapter)  # type: ignore[arg-type]
        error = given_up(house, ROWS[:300])
    assert served.requests <= 9
    assert "deployment small (connection vendor, 127.0.0.1)" in str(error)
    assert "check api_base or the host of connection vendor" in str(error)
    assert SECRET not in str(error)
    assert len({row["error_type"] for row in house.requests()}) == 1
    charged = [row for row in house.requests() if row["status"] == "unknown"]
    assert len(charged) == (served.requests if status == 200 else 0)
    house.spent()


def test_one_web_page_among_good_answers_ends_nothing(tmp_path: Path) -> None:
    class Hiccup(Site):
        async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
            response = await super().answer(request)
            return response if self.requests % 10 == 5 else web.json_response(completion())

    served = Hiccup(200, PAGE, {"content-type": "text/html"})
    served.start()
    try:
        outcome = one(House(tmp_path, served)).run(ROWS[:60])  # type: ignore[arg-type]
    finally:
        served.stop()
    assert (outcome.summary.ok, outcome.summary.error) == (54, 6)
    assert outcome.summary.errors == {"wrong_address": 6}


@both
def test_a_host_that_there_is_not_ends_the_job_for_now(house: House, adapter: str) -> None:
    """Nothing was sent, and a name may be there tomorrow: Airflow's retry makes sense."""
    one(house, adapter, connection="vendor", api_base="http://no-such-host.invalid/v1")
    error = given_up(house)
    assert isinstance(error, JobGivenUpForNow)
    assert "unknown_host" in str(error)
    assert "no-such-host.invalid" in str(error)
    assert house.spent() == 0


@both
@pytest.mark.parametrize(
    "faults",
    [
        Faults(rate_401=0.34, rate_403=0.33, rate_404=0.33),
        Faults(rate_401=0.5, rate_insufficient_quota=0.5),
        Faults(rate_403=0.5, rate_redirect=0.5),
    ],
    ids=["401 403 404", "401 quota", "403 redirect"],
)
def test_refusals_of_several_kinds_count_together(
    house: House, vendor: VendorDouble, adapter: str, faults: Faults
) -> None:
    one(house, adapter)
    vendor.configure(faults=faults, latency=Latency(0.02))
    error = given_up(house)
    assert vendor.stats().requests <= 20 + AT_ONCE
    assert "deployment small" in str(error)
    assert "connection vendor" in str(error)


# Answers


def test_bad_answers_of_several_kinds_count_together(house: House, vendor: VendorDouble) -> None:
    bodies = {
        "cut": completion("half", finish="length"),
        "filtered": completion("half", finish="content_filter"),
        "empty": completion(""),
        "other": completion("[]"),
    }
    vendor.configure(answers={name: RawAnswer(json.dumps(body)) for name, body in bodies.items()})
    one(house)
    names = list(bodies)
    rows = [f"question {number} [[double:{names[number % 4]}]]" for number in range(300)]
    schema = {"type": "object"}
    error = given_up(house, rows, output_schema=schema, batch_rows=25)
    assert "none of the first 50 rows was good" in str(error)
    assert all(kind in str(error) for kind in ("truncated", "filtered", "empty", "schema"))
    assert vendor.stats().requests <= UNTIL_GIVEN_UP


def test_answers_that_all_fail_alike_end_the_job_before_it_is_paid_for(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(faults=Faults(rate_empty=1.0))
    error = given_up(house, batch_rows=25)
    assert isinstance(error, JobGivenUp)
    assert "none of the first 50 rows was good (empty 50)" in str(error)
    assert "give_up_after" in str(error)
    assert 50 <= vendor.stats().requests <= UNTIL_GIVEN_UP
    assert house.spent() == invoiced(vendor)


@pytest.mark.parametrize(("script", "job"), [(["ok"], {}), ([], {"give_up_after": None})])
def test_one_good_answer_or_the_tasks_own_word_lets_all_be_asked(
    house: House, vendor: VendorDouble, script: list[str], job: dict[str, Any]
) -> None:
    one(house)
    vendor.configure(script=script, faults=Faults(rate_empty=1.0))
    outcome = house.run(ROWS[:150], **job)
    assert outcome.summary.rejected == 150 - len(script)


def test_a_retry_over_rows_that_were_paid_for_calls_nobody(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(faults=Faults(rate_empty=1.0))
    first = str(given_up(house, batch_rows=25))
    asked = vendor.stats().requests
    assert str(given_up(house, batch_rows=25))[:40] == first[:40]
    assert vendor.stats().requests - asked <= UNTIL_GIVEN_UP


def test_contents_that_all_are_refused_end_the_job_too(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(faults=Faults(rate_context_length=1.0))
    error = given_up(house, batch_rows=25)
    assert "none of the first 50 rows was good (context_window 50)" in str(error)
    assert vendor.stats().requests <= UNTIL_GIVEN_UP


def test_rows_that_no_deployment_may_have_say_nothing_of_the_others(house: House, vendor: VendorDouble) -> None:
    """They cost nothing, however many come first."""
    classes = {"column": "class", "vendor": ["public"], "self_hosted": ["secret"]}
    house.write(policy(classification=classes))
    rows = [{"text": f"question {number}", "class": "secret" if number < 80 else "public"} for number in range(100)]
    outcome = house.run(rows)
    assert (outcome.summary.ok, outcome.summary.error) == (20, 80)


@pytest.mark.parametrize("tasks", [2])
def test_mapped_tasks_find_out_each_for_itself(
    tmp_path: Path, vendor: VendorDouble, redis_url: str, tasks: int
) -> None:
    """On one ledger and one Redis, whose slots they share."""
    house = one(House(tmp_path, vendor, cache_url=redis_url))
    vendor.configure(faults=Faults(rate_401=1.0), latency=Latency(0.05))
    job = house.job(ROWS)
    assert house.left_over() == (0, 0)

    def run(index: int) -> str:
        shard = replace(job, shard=Shard(index, tasks), batch_rows=50)
        with pytest.raises(JobGivenUp) as caught:
            run_map(shard, Caller("dag", "run-1", "answer", index), house.settings, log=LOG)
        return str(caught.value)

    with ThreadPoolExecutor(tasks) as pool:
        messages = list(pool.map(run, range(tasks)))
    assert all("check the API key of connection vendor" in message for message in messages)
    assert vendor.stats().requests <= tasks * 20 + AT_ONCE
    assert items(house) == {}
    assert house.left_over() == (0, 0)


def test_good_rows_of_an_earlier_try_count(house: House, vendor: VendorDouble) -> None:
    one(house)
    vendor.configure(script=["ok"] * 60, faults=Faults(rate_401=1.0))
    given_up(house, ROWS[:200], batch_rows=10)
    vendor.configure(faults=Faults(rate_empty=1.0))
    outcome = house.run(ROWS[:200], batch_rows=10)
    assert outcome.summary.skipped >= 10
    assert outcome.summary.ok + outcome.summary.rejected == 200
