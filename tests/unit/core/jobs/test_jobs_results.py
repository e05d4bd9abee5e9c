"""Output rows, counts that add up, and the line that says how far a job has come."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.jobs.answers import AnswerTally, check_output_columns, to_table
from airflow_ai_provider.core.jobs.tally import progress_line
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.pipeline.answer import Answer
from airflow_ai_provider.core.rows.source import ROW_NUMBER_KEY
from airflow_ai_provider.errors import SourceError

ANSWERS = [
    Answer(
        "ok",
        "q1",
        text="答案",
        tier="simple",
        deployment="small",
        model="m",
        usage=Usage(3, 4),
        cost_nano=1_234_567_891,
    ),
    Answer("ok", "q2", text="again", tier="simple", deployment="small", model="m", reused=True, saved_nano=7),
    Answer("rejected", "q3", text="no", error="schema: the answer is not JSON", usage=Usage(1, 1), cost_nano=5),
    Answer("over_budget", "q4", error="over_budget: no room left in budget b"),
    Answer("error", "q5", error="timeout: small: no answer in time: really", cost_nano=9),
]
BATCH = pa.RecordBatch.from_pydict({"id": list("abcde"), "n": [1, 2, 3, 4, 5]})


def test_the_output_has_the_rows_own_columns_and_then_ours() -> None:
    table = to_table(BATCH, list("abcde"), "id", ANSWERS)
    ours = ["answer", "status", "error", "tier", "deployment", "model", "reused", "cost_usd", "request_id"]
    assert table.column_names == ["id", "n", *ours]
    rows = table.to_pylist()
    assert rows[0]["cost_usd"] == Decimal("1.2345678910")
    assert [row["status"] for row in rows] == ["ok", "ok", "rejected", "over_budget", "error"]
    assert [row["n"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[3]["answer"] is rows[3]["tier"] is None


def test_a_batch_of_failures_alone_has_the_same_schema() -> None:
    failed = [Answer("error", "q", error="prompt: x")] * 5
    assert to_table(BATCH, list("abcde"), "id", failed).schema == to_table(BATCH, list("abcde"), "id", ANSWERS).schema


def test_rows_without_a_key_are_named_by_their_number() -> None:
    table = to_table(BATCH, ["10", "11", "12", "13", "14"], ROW_NUMBER_KEY, ANSWERS)
    assert table.column_names[0] == "row_number"
    assert table.column("row_number").to_pylist() == [10, 11, 12, 13, 14]


def test_a_column_of_the_source_may_not_have_the_name_of_one_of_ours() -> None:
    with pytest.raises(SourceError, match=r"in\.csv: column answer, status has the name of an output column; rename"):
        check_output_columns("in.csv", ["id", "answer", "status"], "id")
    check_output_columns("in.csv", ["id", "row_number"], "id")
    with pytest.raises(SourceError, match="row_number"):
        check_output_columns("in.csv", ["row_number"], ROW_NUMBER_KEY)


def test_counts_of_a_batch() -> None:
    tally = AnswerTally.of(ANSWERS)
    assert (tally.rows, tally.ok, tally.reused, tally.rejected, tally.over_budget, tally.error) == (5, 2, 1, 1, 1, 1)
    assert (tally.input_tokens, tally.output_tokens) == (4, 5)
    assert (tally.cost_nano, tally.saved_nano) == (1_234_567_905, 7)
    assert tally.errors == {"schema": 1, "over_budget": 1, "timeout": 1}


@given(st.lists(st.sampled_from(ANSWERS), max_size=12), st.integers(0, 12))
def test_parts_add_up_to_the_whole(answers: list[Answer], cut: int) -> None:
    total = AnswerTally.of(answers[:cut])
    total.add(AnswerTally.of(answers[cut:]).to_summary())
    assert total == AnswerTally.of(answers)


def test_a_finished_part_counts_its_rows_and_not_its_money() -> None:
    again = AnswerTally()
    again.add_finished(AnswerTally.of(ANSWERS).to_summary())
    assert (again.rows, again.ok, again.skipped, again.error) == (5, 2, 5, 1)
    assert (again.cost_nano, again.saved_nano, again.input_tokens) == (0, 0, 0)
    assert again.errors == AnswerTally.of(ANSWERS).errors
    again = AnswerTally()
    again.add_finished({})
    assert again == AnswerTally()


def test_the_line_says_how_far_how_fast_what_it_cost_and_how_long_still() -> None:
    tally = AnswerTally(rows=4250, ok=4250, reused=1003, cost_nano=123_400_000)
    line = progress_line(tally, 10_003, 5.0)
    assert line == "4,250/10,003 rows (42%) · 850 rows/s · reused 1,003 · $0.1234 · 7 s left"


def test_problems_are_in_the_line_when_there_are_any() -> None:
    tally = AnswerTally(rows=10, ok=4, rejected=1, over_budget=2, error=3)
    assert "rejected 1 · over budget 2 · errors 3" in progress_line(tally, 10, 1.0)


def test_rows_of_an_earlier_try_do_not_make_this_one_look_fast() -> None:
    tally = AnswerTally(rows=900, ok=900, skipped=800)
    assert "100 rows/s" in progress_line(tally, 1000, 1.0)


@pytest.mark.parametrize(
    ("rows", "seconds", "left"), [(1, 1.0, "16 min 39 s left"), (1, 10.0, "2 h 46 min left"), (1000, 1.0, "0 s left")]
)
def test_the_time_left_is_in_units_people_use(rows: int, seconds: float, left: str) -> None:
    assert progress_line(AnswerTally(rows=rows), 1000, seconds).endswith(left)


def test_nothing_done_yet_promises_nothing() -> None:
    assert progress_line(AnswerTally(), 0, 0.0) == "0/0 rows (0%) · 0 rows/s · reused 0 · $0.0000"
