"""``LLMMapOperator`` and ``@task.llm_map``: what a DAG file may write, and what reaches the heart."""

from __future__ import annotations

import socket
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic
import pytest
from airflow.sdk import DAG, BaseOperator, task
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_ai_provider.core.job import Caller, MapJob, MapSummary
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.errors import (
    BudgetExceeded,
    JobGivenUp,
    JobGivenUpForNow,
    LedgerUnavailable,
    PolicyError,
    PromptError,
)
from airflow_ai_provider.operators.base import AIBaseOperator
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.operators.shards import shards

ARGUMENTS: dict[str, Any] = {
    "source": "in.csv",
    "sink": "out",
    "key": "id",
    "team": "support",
    "route": "support",
}


def summary(**changes: Any) -> MapSummary:
    values: dict[str, Any] = {
        "sink": "out",
        "rows": 10,
        "ok": 10,
        "reused": 2,
        "rejected": 0,
        "over_budget": 0,
        "error": 0,
        "skipped": 0,
        "input_tokens": 5,
        "output_tokens": 6,
        "cost_usd": "0.001",
        "saved_usd": "0",
        "seconds": 0.1,
    }
    return MapSummary(**{**values, **changes})


class Heart:
    """Stands where the gateway stands, keeps what it was asked, and answers or raises what a test says."""

    def __init__(self) -> None:
        self.jobs: list[MapJob] = []
        self.callers: list[Caller] = []
        self.outcome: MapSummary | BaseException = summary()
        self.wanted: object = None

    def run_map(
        self, job: MapJob, caller: Caller, settings: object, *, log: object, on_notice: object, wanted: object
    ) -> MapSummary:
        self.wanted = wanted
        self.jobs.append(job)
        self.callers.append(caller)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def heart(monkeypatch: pytest.MonkeyPatch) -> Heart:
    double = Heart()
    module = types.ModuleType("airflow_ai_provider.core.jobs.llm_map")
    module.run_map = double.run_map  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "airflow_ai_provider.core.jobs.llm_map", module)
    return double


@pytest.fixture
def dag() -> Iterator[DAG]:
    with DAG(dag_id="d", schedule=None) as dag:
        yield dag


def context(**more: Any) -> dict[str, Any]:
    ti = types.SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=3, try_number=2)
    return {"ti": ti, "run_id": "r", "dag_run": types.SimpleNamespace(triggering_user_name="ada"), **more}


def prompt_of(job: MapJob, row: Mapping[str, Any]) -> Any:
    assert callable(job.prompt)
    return job.prompt(row)


def run(task_or_arg: Any, ctx: dict[str, Any] | None = None) -> Any:
    operator = getattr(task_or_arg, "operator", task_or_arg)
    return operator.execute(ctx or context())


def test_the_operator_hands_its_arguments_to_the_heart(heart: Heart) -> None:
    operator = LLMMapOperator(
        task_id="t", prompt="{{ text }}", shard="1/4", max_tokens=99, batch_rows=7, system_prompt="s", **ARGUMENTS
    )
    result = run(operator)
    assert heart.jobs == [
        MapJob(
            source="in.csv",
            sink="out",
            prompt="{{ text }}",
            key="id",
            team="support",
            route="support",
            system_prompt="s",
            shard=Shard(1, 4),
            max_tokens=99,
            batch_rows=7,
        )
    ]
    assert heart.callers == [Caller("d", "r", "t", map_index=3, try_number=2, user="ada")]
    assert (result["ok"], result["cost_usd"], result["errors"]) == (10, "0.001", {})


def test_the_heart_is_told_when_the_supervisor_dies(heart: Heart, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, of_task = socket.socketpair()
    with supervisor, of_task:
        comms = types.SimpleNamespace(socket=of_task)
        module = types.SimpleNamespace(SUPERVISOR_COMMS=comms)
        monkeypatch.setitem(sys.modules, "airflow.sdk.execution_time.task_runner", module)
        run(LLMMapOperator(task_id="t", prompt="{{ text }}", **ARGUMENTS))
        assert callable(heart.wanted)
        assert heart.wanted()
        supervisor.close()
        assert not heart.wanted()


def test_prompts_are_not_template_fields() -> None:
    assert set(LLMMapOperator.template_fields) == {"source", "sink", "team", "route", "key", "policy"}


def test_a_pydantic_model_becomes_its_json_schema() -> None:
    class Answer(pydantic.BaseModel):
        text: str

    operator = LLMMapOperator(task_id="t", prompt="p", output_schema=Answer, **ARGUMENTS)
    assert operator.output_schema is not None
    assert operator.output_schema["required"] == ["text"]
    assert operator.output_model is Answer


def test_messages_and_tools_reach_the_heart(heart: Heart) -> None:
    tool = {"type": "function", "function": {"name": "close_case"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "{{ text }}"}]}]
    run(LLMMapOperator(task_id="t", prompt=messages, tools=[tool], tool_choice="required", **ARGUMENTS))
    (job,) = heart.jobs
    assert (job.prompt, job.tools, job.tool_choice) == (messages, (tool,), "required")
    assert (job.output_schema, job.output_model) == (None, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"team": ""}, "team is empty"),
        ({"source": " "}, "source is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": [{"role": "user"}]}, "prompt: message 0: expected role and content"),
        ({"prompt": []}, "prompt: expected messages such as"),
        ({"tools": [{"type": "web_search"}]}, "not passed on"),
        ({"tool_choice": "auto"}, "there are no tools to choose from"),
        ({"sink": None}, "sink is required"),
        ({"shard": "4/4"}, "shard 4/4: expected 0 ≤ index < count"),
        ({"shard": "one"}, 'expected "INDEX/COUNT"'),
        ({"batch_rows": 0}, "batch_rows 0: expected 1 or more"),
        ({"max_tokens": -1}, "max_tokens -1: expected 1 or more"),
        ({"max_error_rate": 2}, "expected a share between 0 and 1"),
        ({"give_up_after": 0}, "give_up_after 0: expected 1 or more"),
        ({"output_schema": 3}, "output_schema: expected a JSON schema"),
    ],
)
def test_what_is_wrong_in_the_dag_file_is_an_error_there(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LLMMapOperator(task_id="t", **{"prompt": "p", **ARGUMENTS, **changes})


@pytest.mark.parametrize(
    ("error", "expected", "retried"),
    [
        (LedgerUnavailable("ledger down"), AirflowException, True),
        (PolicyError("policy.yaml:3: wrong"), AirflowFailException, False),
        (PromptError("prompt wrong"), AirflowFailException, False),
        (BudgetExceeded("no room"), AirflowFailException, False),
    ],
)
def test_errors_say_whether_airflow_may_retry(
    heart: Heart, error: Exception, expected: type[Exception], retried: bool
) -> None:
    error.__cause__ = RuntimeError("a row's secret")
    heart.outcome = error
    with pytest.raises(expected, match=str(error)) as caught:
        run(LLMMapOperator(task_id="t", prompt="p", **ARGUMENTS))
    assert isinstance(caught.value, AirflowFailException) is not retried
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_too_many_errors_fail_the_task_and_name_their_kinds(heart: Heart) -> None:
    heart.outcome = summary(ok=4, error=6, errors={"rate_limited": 1, "refused": 5})
    with pytest.raises(AirflowFailException, match=r"6 of 10 rows.*\(refused 5, rate_limited 1\).*in out"):
        run(LLMMapOperator(task_id="t", prompt="p", **ARGUMENTS))
    assert run(LLMMapOperator(task_id="t", prompt="p", max_error_rate=0.6, **ARGUMENTS))["error"] == 6


@pytest.mark.parametrize(
    ("errors", "retried"),
    [
        ({"server_error": 6}, True),
        ({"circuit_open": 4, "unauthorized": 2}, True),
        ({"deadline": 3, "bad_request": 3}, True),
        ({"server_error": 1, "unauthorized": 5}, False),
        ({"content_policy": 6}, False),
        ({"server_error": 2, "prompt": 4, "schema": 90}, False),
    ],
)
def test_a_task_is_retried_where_most_of_its_rows_met_an_outage(
    heart: Heart, errors: dict[str, int], retried: bool
) -> None:
    heart.outcome = summary(ok=4, error=6, errors=errors)
    with pytest.raises(AirflowException, match="6 of 10 rows") as caught:
        run(LLMMapOperator(task_id="t", prompt="p", **ARGUMENTS))
    assert isinstance(caught.value, AirflowFailException) is not retried


@pytest.mark.parametrize(("error", "retried"), [(JobGivenUp("key"), False), (JobGivenUpForNow("host"), True)])
def test_a_job_that_was_given_up_is_retried_where_that_may_help(heart: Heart, error: Exception, retried: bool) -> None:
    heart.outcome = error
    with pytest.raises(AirflowException, match=str(error)) as caught:
        run(LLMMapOperator(task_id="t", prompt="p", **ARGUMENTS))
    assert isinstance(caught.value, AirflowFailException) is not retried


def test_an_empty_source_is_no_failure(heart: Heart) -> None:
    heart.outcome = summary(rows=0, ok=0)
    assert run(LLMMapOperator(task_id="t", prompt="p", **ARGUMENTS))["rows"] == 0


def test_a_kill_stops_the_task_but_does_not_hide_a_timeout() -> None:
    operator = AIBaseOperator(task_id="t")
    with pytest.raises(SystemExit, match="143"):
        operator.on_kill()
    try:
        raise AirflowTaskTimeout("too long")
    except AirflowTaskTimeout:
        operator.on_kill()


def test_operators_are_mapped_over_shards(dag: DAG) -> None:
    mapped = LLMMapOperator.partial(task_id="t", prompt="p", **ARGUMENTS).expand(shard=shards(3))
    assert isinstance(mapped, MappedOperator)
    each = [mapped.unmap({"shard": shard}) for shard in shards(3)]
    assert [operator.shard for operator in each] == [Shard(0, 3), Shard(1, 3), Shard(2, 3)]


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_shards_are_at_least_one_and_at_most_what_airflow_maps(count: int) -> None:
    with pytest.raises(ValueError, match=f"shards {count}"):
        shards(count)


def test_the_decorated_function_is_called_without_its_row(dag: DAG, heart: Heart) -> None:
    @task.llm_map(**ARGUMENTS)
    def answer(row):  # type: ignore[no-untyped-def]
        """Say something."""
        return f"Q: {row['text']}"

    called = answer()
    assert called.operator.task_id == "answer"
    assert called.operator.doc_md == "Say something."
    run(called)
    (job,) = heart.jobs
    assert (job.source, job.sink, job.key, job.team) == ("in.csv", "out", "id", "support")
    assert prompt_of(job, {"text": "why?"}) == "Q: why?"


def test_further_arguments_are_bound_by_position_name_default_and_context(dag: DAG, heart: Heart) -> None:
    @task.llm_map(**ARGUMENTS)
    def answer(row, tone, language="en", *, run_id=None):  # type: ignore[no-untyped-def]
        return [{"role": "user", "content": f"{row['text']}/{tone}/{language}/{run_id}"}]

    run(answer("kind", language="zh"))
    run(answer(tone="short"))
    assert [prompt_of(job, {"text": "x"})[0]["content"] for job in heart.jobs] == ["x/kind/zh/r", "x/short/en/r"]


def test_the_call_may_give_source_sink_and_shard(dag: DAG, heart: Heart) -> None:
    @task.llm_map(key="id", team="t", route="r", sink="out")
    def answer(row):  # type: ignore[no-untyped-def]
        return row["text"]

    run(answer(source="other.csv", sink="elsewhere", shard="1/2"))
    (job,) = heart.jobs
    assert (job.source, job.sink, job.shard) == ("other.csv", "elsewhere", Shard(1, 2))


def test_an_upstream_task_may_give_the_source(dag: DAG) -> None:
    @task
    def prepare() -> str:
        return "prepared.csv"

    @task.llm_map(key="id", team="t", route="r", sink="out")
    def answer(row):  # type: ignore[no-untyped-def]
        return row["text"]

    assert answer(source=prepare()).operator.upstream_task_ids == {"prepare"}


@pytest.mark.parametrize("tone", [None, "kind"])
def test_decorated_tasks_are_mapped_over_shards(dag: DAG, heart: Heart, tone: str | None) -> None:
    @task.llm_map(**ARGUMENTS)
    def answer(row, tone="plain"):  # type: ignore[no-untyped-def]
        return f"{tone} {row['text']}"

    mapped = (answer.partial(tone=tone) if tone else answer).expand(shard=shards(2))
    for shard in shards(2):
        run(mapped.operator.unmap({"op_kwargs": {"shard": shard}}))
    assert [job.shard for job in heart.jobs] == [Shard(0, 2), Shard(1, 2)]
    assert prompt_of(heart.jobs[0], {"text": "x"}) == f"{tone or 'plain'} x"


def test_override_changes_the_tasks_arguments(dag: DAG, heart: Heart) -> None:
    @task.llm_map(**ARGUMENTS)
    def answer(row):  # type: ignore[no-untyped-def]
        return row["text"]

    run(answer.override(task_id="other", route="cheap", sink="b")())
    assert dag.task_ids == ["other"]
    assert (heart.jobs[0].route, heart.jobs[0].sink) == ("cheap", "b")


def test_what_the_function_returns_is_never_rendered(dag: DAG, heart: Heart) -> None:
    @task.llm_map(**ARGUMENTS)
    def answer(row):  # type: ignore[no-untyped-def]
        return row["text"]

    called = answer()
    called.operator.render_template_fields(context())
    run(called)
    attack = "{{ 7 * 7 }}{% for x in () %}"
    assert prompt_of(heart.jobs[0], {"text": attack}) == attack


def no_row() -> str:
    return ""


def only_named(*, row: dict[str, Any]) -> str:
    return ""


async def asynchronous(row: dict[str, Any]) -> str:
    return ""


def taken(row: dict[str, Any], sink: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_row, "no_row takes no row"),
        (only_named, "only_named takes no row"),
        (asynchronous, "asynchronous is async"),
        (taken, "taken has a parameter 'sink'"),
    ],
)
def test_a_function_that_cannot_take_a_row_is_an_error_at_once(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        task.llm_map(**ARGUMENTS)(function)


def test_a_prompt_beside_the_function_is_an_error() -> None:
    with pytest.raises(TypeError, match="takes no prompt"):
        task.llm_map(prompt="p", **ARGUMENTS)


def test_unknown_arguments_at_the_call_are_an_error(dag: DAG) -> None:
    @task.llm_map(**ARGUMENTS)
    def answer(row):  # type: ignore[no-untyped-def]
        return row["text"]

    with pytest.raises(TypeError, match="tone"):
        answer(tone="kind")
    with pytest.raises(TypeError, match="tone"):
        answer.partial(tone="kind")


def test_a_decorated_task_survives_serialisation(dag: DAG) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    @task.llm_map(**ARGUMENTS)
    def answer(row):  # type: ignore[no-untyped-def]
        return row["text"]

    answer()
    answer.override(task_id="mapped").expand(shard=shards(2))
    restored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    assert set(restored.task_ids) == {"answer", "mapped"}


def test_every_operator_is_airflows() -> None:
    assert issubclass(LLMMapOperator, BaseOperator)
