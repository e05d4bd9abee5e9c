"""What a job does along the one path, with a real ledger, a real response store and a vendor that misbehaves.

After every job the same must hold: nothing is left open or held, and the vendor's invoice is not above the ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pipeline import House, deployment, invoiced, nano, policy
from support.vendor_answers import said

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.testing.behaviour import Faults, RawAnswer
from airflow_ai_provider.testing.vendor import VendorDouble

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
PRICE = {"input_per_mtok": 0.15, "output_per_mtok": 0.60}


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> Iterator[House]:
    made = House(tmp_path, vendor)
    yield made
    assert made.left_over() == (0, 0)
    if vendor.stats().requests:
        assert made.spent() >= invoiced(vendor)


def test_rows_are_answered_in_their_order_and_cost_what_the_vendor_charges(house: House, vendor: VendorDouble) -> None:
    outcome = house.run(["one", "two", "three"])
    assert outcome.column("answer") == [f'Answer about "{text}…"' for text in ("one", "two", "three")]
    assert outcome.column("status") == ["ok"] * 3
    assert house.spent() == invoiced(vendor) == nano(outcome.summary.cost_usd)
    assert sum(map(nano, outcome.column("cost_usd"))) == house.spent()


def test_equal_rows_of_a_job_are_paid_once(house: House, vendor: VendorDouble) -> None:
    outcome = house.run(["same"] * 20 + ["other"])
    assert vendor.stats().requests == 2
    assert set(outcome.column("answer")[:20]) == {'Answer about "same…"'}
    assert Counter(outcome.column("reused")) == {True: 19, False: 2}
    assert Counter(row["status"] for row in house.requests()) == {"reused": 19, "ok": 2}


def test_equal_rows_across_batches_are_paid_once(house: House, vendor: VendorDouble) -> None:
    house.run(["same"] * 9, batch_rows=2)
    assert vendor.stats().requests == 1


def test_a_failed_answer_is_not_shared_and_the_next_equal_row_asks_itself(house: House, vendor: VendorDouble) -> None:
    vendor.configure(script=["401"])
    outcome = house.run(["same"] * 3)
    assert Counter(outcome.column("status")) == {"error": 1, "ok": 2}
    assert vendor.stats().requests == 2


def test_a_rerun_of_the_same_run_is_all_reused_at_no_cost(house: House, vendor: VendorDouble) -> None:
    first = house.run(["one", "two"])
    again = house.run(["one", "two"], sink=f"{first.summary.sink}-again")
    assert vendor.stats().requests == 2
    assert again.column("answer") == first.column("answer")
    assert again.column("reused") == [True, True]
    assert (again.summary.reused, nano(again.summary.cost_usd)) == (2, 0)
    assert nano(again.summary.saved_usd) == nano(first.summary.cost_usd) == house.spent()
    assert [(row["cost_nano"], row["input_tokens"]) for row in house.requests(status="reused")] == [(0, 0)] * 2


@pytest.mark.parametrize(("scope", "requests"), [("off", 2), ("run", 2), ("dag", 1), ("team", 1)])
def test_another_run_is_answered_from_the_store_where_the_scope_allows(
    house: House, vendor: VendorDouble, scope: str, requests: int
) -> None:
    house.write(policy(reuse={"scope": scope, "ttl": "1h"}))
    house.run(["one"], run_id="monday")
    house.run(["one"], run_id="tuesday")
    assert vendor.stats().requests == requests


def test_with_reuse_off_equal_rows_are_paid_each_and_a_retry_still_pays_nothing(
    house: House, vendor: VendorDouble
) -> None:
    house.write(policy(reuse={"scope": "off"}))
    first = house.run(["same", "same"])
    house.run(["same", "same"], sink=f"{first.summary.sink}-again")
    assert vendor.stats().requests == 2


def test_another_model_is_never_answered_with_this_ones_answer(house: House, vendor: VendorDouble) -> None:
    house.write(policy(reuse={"scope": "team", "ttl": "1h"}))
    house.run(["one"], run_id="a")
    house.write(policy(reuse={"scope": "team", "ttl": "1h"}, deployments={"small": deployment(params={"top_p": 0.5})}))
    house.run(["one"], run_id="b")
    assert vendor.stats().requests == 2


def test_a_retry_after_transient_errors_is_a_ledger_row_of_its_own(house: House, vendor: VendorDouble) -> None:
    (row,) = house.run(["hi [[double:500*2]]"]).rows
    assert row["status"] == "ok"
    found = house.requests(request_id=row["request_id"])
    assert Counter(entry["status"] for entry in found) == {"error": 2, "ok": 1}
    assert {entry["error_type"] for entry in found} == {"server_error", None}
    assert len({entry["attempt_id"] for entry in found}) == 3
    assert house.spent() == invoiced(vendor)


def test_after_the_last_transient_error_the_next_deployment_of_the_tier_answers(
    house: House, vendor: VendorDouble
) -> None:
    small, spare = deployment(), deployment(model="openai/spare", price=PRICE)
    house.write(policy(deployments={"small": small, "spare": spare}, tiers={"simple": ["small", "spare"]}))
    vendor.configure(script=["503", "503", "503", "ok"], retry_after=0)
    (row,) = house.run(["hi"]).rows
    assert (row["status"], row["deployment"], row["model"]) == ("ok", "spare", "openai/spare")
    tried = [(entry["deployment"], entry["status"]) for entry in house.requests()]
    assert tried == [("small", "error")] * 3 + [("spare", "ok")]


def test_a_permanent_error_is_one_row_and_the_batch_goes_on(house: House, vendor: VendorDouble) -> None:
    spare = deployment(model="openai/spare", price=PRICE)
    house.write(policy(deployments={"small": deployment(), "spare": spare}, tiers={"simple": ["small", "spare"]}))
    outcome = house.run(["one", "two [[double:content_policy]]", "three"])
    assert outcome.column("status") == ["ok", "error", "ok"]
    assert outcome.rows[1]["error"] == "content_policy: small: HTTP 400: refused by content policy"
    assert outcome.rows[1]["answer"] is None
    assert outcome.summary.errors == {"content_policy": 1}
    assert vendor.stats().requests == 3


def test_the_row_names_the_deployment_that_refused_it(house: House) -> None:
    spare = deployment(model="openai/spare", price=PRICE)
    house.write(policy(deployments={"small": deployment(), "spare": spare}, tiers={"simple": ["small", "spare"]}))
    (row,) = house.run(["hi [[double:content_policy]]"]).rows
    assert (row["deployment"], row["model"]) == ("small", "openai/gpt-4o-mini")


def two_tiers(**changes: object) -> dict[str, object]:
    deployments = {"small": deployment(), "large": deployment(model="openai/large", price=PRICE)}
    tiers = {"simple": ["small"], "complex": ["large"]}
    return policy(deployments=deployments, tiers=tiers, escalate={"on": ["schema"], "to": "complex"}, **changes)


def test_a_rejected_answer_is_tried_once_more_one_tier_up(house: House, vendor: VendorDouble) -> None:
    house.write(two_tiers())
    vendor.configure(script=["empty"])
    (row,) = house.run(["hi"], output_schema=SCHEMA).rows
    assert (row["status"], row["tier"], row["deployment"]) == ("ok", "complex", "large")
    assert row["answer"] == '{"answer":"Answer about \\"hi…\\""}'
    assert [entry["tier"] for entry in house.requests()] == ["simple", "complex"]
    assert nano(row["cost_usd"]) == house.spent() == invoiced(vendor)


def test_an_answer_rejected_on_both_tiers_is_kept_for_review(house: House, vendor: VendorDouble) -> None:
    house.write(two_tiers())
    vendor.configure(answers={"prose": RawAnswer(json.dumps(said("no JSON")))}, script=["prose", "prose"])
    outcome = house.run(["hi"], output_schema=SCHEMA)
    (row,) = outcome.rows
    assert (row["status"], row["tier"]) == ("rejected", "complex")
    assert row["error"] == "schema: the answer is not JSON"
    assert row["answer"]
    assert outcome.summary.rejected == 1
    assert vendor.stats().requests == 2


def test_where_the_upper_tier_fails_a_retry_asks_the_upper_tier_alone(house: House, vendor: VendorDouble) -> None:
    house.write(two_tiers())
    vendor.configure(script=["empty", "401"])
    (row,) = house.run(["hi"], output_schema=SCHEMA).rows
    assert row["status"] == "error"
    again = house.run(["hi"], output_schema=SCHEMA, caller=Caller("dag", "run-1", "answer", try_number=2))
    assert again.column("status") == ["ok"]
    assert Counter(request.body["model"] for request in vendor.requests()) == {"gpt-4o-mini": 1, "large": 2}


def test_a_hard_row_goes_to_the_upper_tier_at_once(house: House) -> None:
    house.write(two_tiers(complexity={"from": "column", "column": "difficulty"}))
    rows = [{"text": "a", "difficulty": "complex"}, {"text": "b", "difficulty": None}, {"text": "c", "difficulty": "?"}]
    assert house.run(rows).column("tier") == ["complex", "simple", "simple"]


@pytest.mark.parametrize("fault", ["hang_billed", "hang", "drop_after", "drop_before", "no_usage", "malformed"])
def test_an_attempt_whose_cost_is_unknown_is_captured_at_its_hold(
    house: House, vendor: VendorDouble, fault: str
) -> None:
    house.write(policy(deployments={"small": deployment(timeout=1)}, retry={"attempts": 1}))
    (row,) = house.run([f"hi [[double:{fault}]]"]).rows
    (entry,) = house.requests()
    assert (entry["status"], entry["input_tokens"]) == ("unknown", None)
    hold = 150 * (len(f"hi [[double:{fault}]]") + 16 + 64) + 600 * 50
    assert house.spent() == hold == nano(row["cost_usd"])
    assert invoiced(vendor) <= hold
    assert row["status"] == ("ok" if fault == "no_usage" else "error")


def test_unknown_attempts_are_paid_again_and_all_of_them_count(house: House, vendor: VendorDouble) -> None:
    outcome = house.run(["hi [[double:drop_after*2]]"])
    assert outcome.column("status") == ["ok"]
    assert Counter(entry["status"] for entry in house.requests()) == {"unknown": 2, "ok": 1}
    assert nano(outcome.summary.cost_usd) == house.spent() > invoiced(vendor) > 0


def test_a_row_that_no_budget_has_room_for_is_over_budget_and_never_sent(house: House, vendor: VendorDouble) -> None:
    house.write(policy(limit_usd="0.00001"))
    outcome = house.run(["one", "two"])
    assert outcome.column("status") == ["over_budget"] * 2
    assert outcome.rows[0]["error"] == "over_budget: no room left in budget team=support/total"
    assert vendor.stats().requests == 0


def test_what_is_released_in_flight_serves_rows_that_wait_for_room(house: House, vendor: VendorDouble) -> None:
    """Room for one hold at a time is room for every row, one after the other."""
    house.write(policy(limit_usd="0.0001"))
    outcome = house.run([f"row {n}" for n in range(6)])
    assert outcome.column("status") == ["ok"] * 6
    assert vendor.stats().max_in_flight <= 2
    limit, spent, _ = house.budget()
    assert spent <= limit


@pytest.mark.timeout(10)
def test_the_room_of_a_row_that_failed_for_good_serves_the_next_row(house: House, vendor: VendorDouble) -> None:
    house.write(policy(limit_usd="0.00006"))
    vendor.configure(script=["401"])
    outcome = house.run(["one", "two"])
    assert sorted(outcome.column("status")) == ["error", "ok"]


def test_a_retry_under_a_raised_limit_pays_only_for_the_rest(house: House, vendor: VendorDouble) -> None:
    rows = [f"row {n:03d}" for n in range(24)]
    house.write(policy(limit_usd="0.0001"))
    first = house.run(rows, batch_rows=6, caller=Caller("dag", "run", "answer", try_number=1))
    assert first.summary.ok + first.summary.over_budget == 24
    assert 0 < first.summary.ok < 24
    house.write(policy(limit_usd="1"))
    second = house.run(rows, batch_rows=6, caller=Caller("dag", "run", "answer", try_number=2))
    assert second.column("status") == ["ok"] * 24
    assert vendor.stats().requests == len(vendor.invoice()) == 24
    assert second.summary.skipped + second.summary.reused == first.summary.ok
    assert nano(first.summary.cost_usd) + nano(second.summary.cost_usd) == house.spent() == invoiced(vendor)


def test_a_retry_leaves_finished_parts_as_they_are(house: House, vendor: VendorDouble) -> None:
    rows = ["one", "two", "three [[double:500*3]]"]
    first = house.run(rows, batch_rows=1)
    assert first.column("status") == ["ok", "ok", "error"]
    again = house.run(rows, batch_rows=1, caller=Caller("dag", "run-1", "answer", try_number=2))
    assert again.column("status") == ["ok"] * 3
    assert again.summary.skipped == 2
    assert vendor.stats().requests == 6


def test_planted_values_never_leave_the_house_and_come_back_in_the_answer(house: House, vendor: VendorDouble) -> None:
    profile = {"detect": ["email", "phone"], "columns": {"name": "PERSON"}}
    house.write(policy(masking="standard", profiles={"standard": profile}))
    text = "Yuki Tanaka asks to be called at +44 20 7946 0958 or yuki@example.org"
    (row,) = house.run([{"text": text, "name": "Yuki Tanaka"}]).rows
    for value in ("Yuki Tanaka", "7946", "yuki@example.org"):
        assert vendor.find(value) == []
        assert value in row["answer"]
    assert vendor.find("[PERSON_")


def test_equal_rows_with_other_persons_do_not_share_an_answer(house: House, vendor: VendorDouble) -> None:
    house.write(policy(masking="standard", profiles={"standard": {"detect": ["email"]}}))
    outcome = house.run(["write to ann@example.org", "write to bob@example.org", "write to ann@example.org"])
    assert vendor.stats().requests == 2
    assert ["ann@" in text for text in outcome.column("answer")] == [True, False, True]


def test_a_row_whose_prompt_cannot_be_made_is_one_error_and_costs_nothing(house: House, vendor: VendorDouble) -> None:
    outcome = house.run([{"text": "10"}, {"text": "zero"}], prompt="{{ 100 // (text | int) }}")
    assert outcome.column("status") == ["ok", "error"]
    assert outcome.rows[1]["error"] == "prompt: prompt: ZeroDivisionError while the row was put in"
    assert vendor.stats().requests == 1


def test_a_row_larger_than_every_model_of_its_tier_is_refused_without_a_call(
    house: House, vendor: VendorDouble
) -> None:
    house.write(policy(deployments={"small": deployment(context_tokens=10)}))
    (row,) = house.run(["x" * 200]).rows
    assert row["error"].startswith(
        "context_window: no deployment of tier simple can take the row: small (takes 10 tokens"
    )
    assert vendor.stats().requests == 0


def test_hundreds_of_rows_under_faults_keep_the_books(house: House, vendor: VendorDouble) -> None:
    """Every attempt the vendor saw is a ledger row, and what it charged is never more than the ledger says."""
    vendor.configure(
        faults=Faults(rate_429=0.05, rate_500=0.05, rate_drop_after=0.03, rate_no_usage=0.03, rate_422=0.02),
        retry_after=0,
        seed=7,
    )
    outcome = house.run([f"row {n}" for n in range(120)], batch_rows=40)
    stats = vendor.stats()
    sent = [entry for entry in house.requests() if entry["status"] != "reused"]
    assert len(sent) == stats.requests
    assert nano(outcome.summary.cost_usd) == house.spent()
    assert outcome.summary.ok + outcome.summary.error == 120
    assert outcome.summary.error >= stats.outcomes["422"] > 0
