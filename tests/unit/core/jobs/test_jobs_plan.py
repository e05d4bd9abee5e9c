"""A plan beside what was then done: nothing is asked or written, worst holds always, expected once there is history."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pipeline import House, Outcome, deployment, nano, policy

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs import runner
from airflow_ai_provider.core.jobs.plan import SpendPlan, _Digests, budget_lines, plan_spend
from airflow_ai_provider.core.jobs.plan_text import dollars, duration, plan_document, plan_figures, plan_line
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.errors import PolicyError, PromptError, SourceError
from airflow_ai_provider.testing.behaviour import Faults, RawAnswer
from airflow_ai_provider.testing.vendor import VendorDouble

WORDS = "card transfer refund balance limit abroad fee pending cash machine app statement 卡 转账 余额".split()
TIERS = {
    "deployments": {
        "small": deployment(),
        "large": deployment(model="openai/large", price={"input_per_mtok": 2, "output_per_mtok": 8}),
    },
    "tiers": {"simple": ["small"], "complex": ["large"]},
    "complexity": {"from": "column"},
    "escalate": {"on": ["empty"], "to": "complex"},
}


def questions(count: int, seed: int = 1) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"text": f"{number}: " + " ".join(rng.choices(WORDS, k=rng.randint(3, 30))), "difficulty": tier}
        for number, tier in zip(range(count), ["simple", "simple", "complex"] * count, strict=False)
    ]


class Planned(House):
    """A house that plans what it runs."""

    def plan(
        self,
        rows: Sequence[str | Mapping[str, Any]],
        *,
        run_id: str = "run-1",
        defaults: Mapping[str, str] | None = None,
        **job: Any,
    ) -> SpendPlan:
        made = self.job(rows, **{"sink": "", **job})
        return plan_spend(made, Caller("dag", run_id, "answer"), self.settings, defaults=defaults)

    def both(self, rows: Sequence[str | Mapping[str, Any]], **job: Any) -> tuple[SpendPlan, Outcome]:
        return self.plan(rows, **job), self.run(rows, **job)


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> Planned:
    return Planned(tmp_path, vendor)


def actual(outcome: Outcome) -> int:
    return nano(outcome.summary.cost_usd)


def test_expected_is_learnt_and_the_worst_is_never_reached(house: Planned) -> None:
    house.write(policy(**TIERS, reuse={"scope": "team"}, masking="off"))
    cold, first = house.both(questions(60), run_id="cold")
    assert "no history" in cold.figures[0].basis
    assert 0 < actual(first) <= cold.worst_nano
    warm, second = house.both(questions(200, seed=2), run_id="warm")
    assert warm.figures[0].basis == "history of 40 calls"
    assert abs(warm.expected_nano - actual(second)) <= actual(second) * 0.15
    assert actual(second) <= warm.worst_nano
    assert abs(warm.input_tokens - second.summary.input_tokens) <= second.summary.input_tokens * 0.15
    again, third = house.both(questions(200, seed=2), run_id="again")
    assert (again.stored, again.calls, again.expected_nano, again.worst_nano) == (200, 0, 0, 0)
    assert (third.summary.reused, actual(third)) == (200, 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_worst_holds_whatever_the_vendor_does(house: Planned, vendor: VendorDouble, seed: int) -> None:
    faults = Faults(rate_drop_after=0.2, rate_500=0.1, rate_429=0.1, rate_empty=0.2, rate_no_usage=0.2)
    vendor.configure(faults=faults, seed=seed, retry_after=0.001)
    house.write(policy(**TIERS))
    rows = [*questions(20, seed), *questions(20, seed)]
    planned, outcome = house.both(rows, run_id=f"run-{seed}")
    assert planned.equal == 20
    assert 0 < actual(outcome) <= planned.worst_nano


def test_nothing_is_asked_and_nothing_is_written(house: Planned, vendor: VendorDouble) -> None:
    house.write(policy(profiles={"standard": {"detect": ["email"]}}, masking="standard"))
    planned = house.plan(["write to ada@example.com", "why?"])
    assert planned.calls == 2
    assert vendor.invoice() == []
    assert {path.name.partition("-")[0] for path in house.settings.home.iterdir()} == {"ledger.db"}
    house.run(["why?"])
    before = {path: path.stat().st_mtime_ns for path in (house.settings.home / "audit").rglob("*")}
    rows = len(house.requests())
    house.plan(["write to ada@example.com", "why?"])
    assert {path: path.stat().st_mtime_ns for path in (house.settings.home / "audit").rglob("*")} == before
    assert len(house.requests()) == rows
    assert house.left_over() == (0, 0)


def test_rows_that_ask_the_same_are_one_call(house: Planned) -> None:
    planned, outcome = house.both(["one", "two", "one", "one"], batch_rows=2)
    assert (planned.rows, planned.calls, planned.equal) == (4, 2, 2)
    assert outcome.summary.reused == planned.equal
    house.write(policy(reuse={"scope": "off"}))
    assert house.plan(["one", "two", "one", "one"], run_id="other").calls == 4


def test_equal_after_masking_is_equal(house: Planned) -> None:
    house.write(policy(profiles={"p": {"columns": {"name": "PERSON"}}}, masking="p"))
    rows = [
        {"text": "Ada asks", "name": "Ada"},
        {"text": "Ada asks", "name": "Ada"},
        {"text": "Bob asks", "name": "Bob"},
    ]
    planned, outcome = house.both(rows)
    assert (planned.calls, planned.equal, outcome.summary.reused) == (2, 1, 1)


def test_rows_that_cannot_be_asked_are_counted_by_kind(house: Planned) -> None:
    house.write(policy(deployments={"small": deployment(context_tokens=20)}))
    planned, outcome = house.both([{"text": None}, {"text": "fine"}, {"text": "x" * 400}])
    assert planned.refused == {"prompt": 1, "context_window": 1}
    assert planned.calls == 1
    assert outcome.summary.errors == planned.refused


def test_a_stored_answer_that_a_check_rejects_is_asked_again_above(house: Planned, vendor: VendorDouble) -> None:
    house.write(policy(**{**TIERS, "escalate": {"on": [], "to": None}}, reuse={"scope": "team"}))
    vendor.configure(script=["empty"])
    house.run([{"text": "why?", "difficulty": "simple"}])
    house.write(policy(**TIERS, reuse={"scope": "team"}))
    planned, outcome = house.both([{"text": "why?", "difficulty": "simple"}], run_id="run-2")
    assert [(line.tier, line.calls) for line in planned.figures] == [("complex", 1)]
    assert (planned.stored, planned.calls) == (0, 1)
    assert 0 < actual(outcome) <= planned.worst_nano
    assert house.plan([{"text": "why?", "difficulty": "simple"}], run_id="run-3").stored == 1


def test_a_stored_answer_whose_tokens_are_not_the_rows_is_asked_again_above(house: Planned) -> None:
    masked = {"masking": "standard", "profiles": {"standard": {"detect": ["email"]}}, "reuse": {"scope": "team"}}
    invented = {"type": "object", "properties": {"to": {"const": "[EMAIL_22A22]"}}}
    rows = [{"text": "write to ann@example.com", "difficulty": "simple"}]
    house.write(policy(**{**TIERS, "escalate": {"on": [], "to": None}}, **masked))
    house.run(rows, output_schema=invented)
    house.write(policy(**{**TIERS, "escalate": {"on": ["restore"], "to": "complex"}}, **masked))
    planned, outcome = house.both(rows, run_id="run-2", output_schema=invented)
    assert 0 < actual(outcome) <= planned.worst_nano


CALL: dict[str, Any] = {"type": "function", "function": {"name": "close", "parameters": {"type": "object"}}}
ADDRESSED = {
    "type": "object",
    "properties": {"to": {"type": "string", "pattern": "ann@example\\.com"}},
    "required": ["to"],
}
FENCED = {
    "choices": [{"message": {"content": '```json\n{"to": "the branch"}\n```'}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 9},
}


@pytest.mark.parametrize(
    ("job", "script"),
    [
        ({"tools": [CALL], "tool_choice": "required"}, []),
        ({"output_schema": {"type": "object", "required": ["to"]}}, ["fenced"]),
        ({"output_schema": ADDRESSED}, []),
    ],
    ids=["forced tool", "fenced JSON", "schema of the restored value"],
)
def test_a_plan_judges_stored_answers_as_the_run_does(
    house: Planned, vendor: VendorDouble, job: dict[str, Any], script: list[str]
) -> None:
    masked = {"masking": "standard", "profiles": {"standard": {"detect": ["email"]}}, "reuse": {"scope": "team"}}
    rows = [{"text": "write to ann@example.com", "difficulty": "simple"}]
    house.write(policy(**{**TIERS, "escalate": {"on": ["schema"], "to": "complex"}}, **masked))
    vendor.configure(answers={"fenced": RawAnswer(json.dumps(FENCED), cost_nanodollars=50_000)}, script=script)
    first = house.run(rows, **job)
    assert first.column("status") == ["ok"]
    planned, again = house.both(rows, run_id="run-2", **job)
    assert (planned.stored, planned.calls) == (again.summary.reused, 0) == (1, 0)


@pytest.mark.parametrize(("finish", "calls"), [("content_filter", 0), ("refusal", 0), ("length", 1)])
def test_a_plan_asks_no_model_again_that_the_run_would_not(
    house: Planned, vendor: VendorDouble, finish: str, calls: int
) -> None:
    """What a model filtered or refused goes up to another model only; what it cut, to the same one with more room."""
    same = {"deployments": {"small": deployment(), "again": deployment()}}
    same |= {"tiers": {"simple": ["small"], "complex": ["again"]}, "tier_options": {"complex": {"max_tokens": 200}}}
    answer = {
        "choices": [{"message": {"content": "ye"}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9},
    }
    vendor.configure(answers={"bad": RawAnswer(json.dumps(answer), cost_nanodollars=50_000)}, script=["bad"])
    house.write(policy(**same))
    assert house.run(["why?"]).column("status") == ["rejected"]
    kinds = ["filtered", "refused", "truncated"]
    house.write(policy(**same, escalate={"on": kinds, "to": "complex"}))
    planned, again = house.both(["why?"], sink=str(house.folder / "again"))
    assert planned.calls == calls
    assert sum(line.calls for line in planned.figures) == calls
    assert again.column("status") == ["ok" if calls else "rejected"]


def test_escalation_is_learnt(house: Planned, vendor: VendorDouble) -> None:
    vendor.configure(faults=Faults(rate_empty=0.3))
    house.write(policy(**TIERS))
    house.run([{"text": f"first {n}", "difficulty": "simple"} for n in range(100)])
    planned, outcome = house.both([{"text": f"second {n}", "difficulty": "simple"} for n in range(100)], run_id="run-2")
    above = next(line for line in planned.figures if line.tier == "complex")
    asked = len({row["request_id"] for row in house.requests(run_id="run-2", tier="complex")})
    assert abs(above.calls - asked) <= 12
    assert abs(planned.expected_nano - actual(outcome)) <= actual(outcome) * 0.25


def test_shards_add_up_to_the_whole(house: Planned) -> None:
    rows = questions(95)
    whole = house.plan(rows, batch_rows=10)
    shards = [house.plan(rows, batch_rows=10, shard=Shard(index, 3)) for index in range(3)]
    assert [shard.rows for shard in shards] == [35, 30, 30]
    assert {shard.source_rows for shard in shards} == {95}
    assert sum(shard.worst_nano for shard in shards) == whole.worst_nano
    assert abs(sum(shard.expected_nano for shard in shards) - whole.expected_nano) <= whole.expected_nano * 0.01
    assert len({plan.fingerprint for plan in (*shards, whole)}) == 4


def test_parts_that_an_earlier_try_has_finished_cost_nothing(house: Planned) -> None:
    rows, sink = questions(30), str(house.folder / "out-run-1")
    house.run(rows, batch_rows=10)
    (house.settings.home / "responses.db").unlink()
    planned = house.plan(rows, batch_rows=10, sink=sink)
    assert (planned.finished, planned.calls, planned.worst_nano) == (30, 0, 0)
    assert house.plan(rows, batch_rows=10, sink="").calls == 30


def test_a_part_of_other_rows_is_asked_anew(house: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query without an order may deal its rows anew."""
    rows, sink = questions(30), str(house.folder / "out-run-1")
    with monkeypatch.context() as earlier:
        earlier.setattr(runner, "keys_digest", lambda keys: "of other rows")
        house.run(rows, batch_rows=10)
    (house.settings.home / "responses.db").unlink()
    planned, outcome = house.both(rows, batch_rows=10, sink=sink)
    assert (planned.finished, planned.calls) == (0, 30)
    assert 0 < actual(outcome) <= planned.worst_nano


def test_a_plan_of_the_same_work_has_the_same_fingerprint(house: Planned) -> None:
    rows = questions(5)
    first = house.plan(rows).fingerprint
    house.write(policy(limit_usd="7"))
    assert house.plan(rows).fingerprint == first, "a raised budget is the same work"
    assert house.plan(rows, run_id="run-2").fingerprint != first
    house.write(policy(max_tokens=51))
    assert house.plan(rows).fingerprint != first


def test_rows_over_budget_are_foretold(house: Planned) -> None:
    house.run(questions(60), run_id="history")
    spent = house.spent()
    house.write(policy(limit_usd=str((spent * 2) / 10**9)))
    planned, outcome = house.both(questions(120, seed=3), run_id="short")
    (line,) = planned.budgets
    assert not planned.fits
    assert line.after_expected_nano < 0
    assert abs(line.rows_over - outcome.summary.over_budget) <= 20
    assert outcome.summary.over_budget > 20


def test_several_plans_share_a_budget(house: Planned) -> None:
    one, two = house.plan(questions(10)), house.plan(questions(20, seed=2))
    (line,) = budget_lines([one, two])
    assert line.after_expected_nano == line.left_nano - one.expected_nano - two.expected_nano


def test_a_column_that_is_not_there_yet_may_have_a_default(house: Planned) -> None:
    prompt = "{{ context }} {{ text }}"
    with pytest.raises(PromptError, match="no column context in the rows; they have: id, text"):
        house.plan(["one"], prompt=prompt)
    small = house.plan(["one"], prompt=prompt, defaults={"context": "c"})
    large = house.plan(["one"], prompt=prompt, defaults={"context": "c" * 4000, "text": "not taken"})
    assert small.calls == large.calls == 1
    assert large.input_tokens - small.input_tokens == pytest.approx(1000, abs=1)


def test_what_would_stop_the_job_stops_its_plan(house: Planned) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        house.plan(["one"], source=str(house.folder / "nowhere.csv"))
    house.write(policy(budgets=[{"team": "other", "period": "day", "limit_usd": 1}]))
    with pytest.raises(PolicyError, match="no budget applies"):
        house.plan(["one"])


def test_whoever_watches_hears_of_every_batch(house: Planned) -> None:
    heard: list[tuple[int, int]] = []
    job = house.job(questions(25), sink="", batch_rows=10)
    plan_spend(job, Caller("d", "r", "t"), house.settings, watch=lambda done, total: heard.append((done, total)))
    assert heard == [(10, 25), (20, 25), (25, 25)]


def test_a_plan_in_words_holds_no_row(house: Planned) -> None:
    planned = house.plan([{"text": "SECRET one"}, {"text": None}])
    shown = f"{plan_line(planned)}{plan_figures(planned)}{plan_document(planned)}"
    assert "SECRET" not in shown
    assert plan_figures(planned)["cannot be asked"] == "prompt 1"
    assert plan_figures(replace(planned, finished=3))["finished before"] == "3"
    assert plan_document(planned)["budgets"][0]["verdict"] == "fits, even at worst"


def test_the_worst_of_all_tries_is_told_beside_that_of_one(house: Planned) -> None:
    """One row, three attempts of one deployment a try."""
    planned = replace(house.plan(["one"]), worst_nano=2 * 10**9)
    assert planned.worst_attempts == 3
    assert plan_figures(planned)["worst cost"] == "$2.0000"
    assert plan_figures(planned, 3)["worst cost"] == "$2.0000 a try, $6.0000 in all 3"
    document = plan_document(planned, 3)
    assert (document["worst_usd"], document["worst_all_tries_usd"]) == ("2", "6")


def test_a_plan_warns_of_a_time_out_that_is_too_short(house: Planned) -> None:
    house.write(policy(deployments={"small": deployment(timeout=1)}, max_tokens=500))
    (warning,) = house.plan(["one"]).warnings
    assert warning.startswith("small may write 500 tokens in tier simple")
    assert plan_figures(house.plan(["one"]))["warning"] == warning


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (0, "$0.00"),
        (1_234_567_890_000, "$1,234.57"),
        (42_100_000, "$0.0421"),
        (134_000, "$0.000134"),
        (-5 * 10**9, "-$5.0000"),
    ],
)
def test_dollars_have_as_many_digits_as_say_something(nano_usd: int, text: str) -> None:
    assert dollars(nano_usd) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "under 1 s"), (41, "41 s"), (200, "3 min"), (7500, "2 h 5 min")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=20))
def test_digests_are_a_set(batches: list[list[int]]) -> None:
    digests, seen = _Digests(), set[int]()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key not in seen)
            seen.add(key)
        assert digests.add([key.to_bytes(8, "big") + b"rest" for key in batch]) == expected
    assert sum(len(run) for run in digests._runs) == len(seen)
