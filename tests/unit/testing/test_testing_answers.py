"""What the double answers and charges, as pure functions."""

from __future__ import annotations

import math
import re
import struct
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.testing import answers
from airflow_ai_provider.testing.behaviour import (
    Behaviour,
    Fault,
    Faults,
    Latency,
    Limits,
    draw_for,
    fault_at,
)
from airflow_ai_provider.testing.invoice import Invoice, InvoiceLine, Price, Usage, read_invoice
from airflow_ai_provider.testing.journal import Journal, read_requests
from airflow_ai_provider.testing.limits import Quotas, SlidingWindow


def chat(user: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "Sort."}, {"role": "user", "content": user}],
    } | more


# -- tokens


@given(st.text(min_size=1))
def test_tokens_are_at_least_one_and_at_most_the_bytes(text: str) -> None:
    """Cost estimates rest on a token being at least one byte of UTF-8."""
    assert 1 <= answers.count_tokens(text) <= len(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 1), ("one two", 2), ("it's", 3), ("张三丰", 3), ("发email给张三", 5), ("[EMAIL_7K2QM]", 3), ("a_b", 1)],
)
def test_tokens_are_words_han_characters_and_signs(text: str, tokens: int) -> None:
    assert answers.count_tokens(text) == tokens


@given(st.text(), st.integers(1, 20))
def test_a_cut_text_has_no_more_tokens_than_the_limit(text: str, limit: int) -> None:
    cut, is_cut = answers.cut_to_tokens(text, limit)
    assert answers.count_tokens(cut) <= limit
    assert is_cut == (answers.count_tokens(text) > limit)
    assert text.startswith(cut)


def test_an_answers_schema_and_tools_are_input_tokens_too() -> None:
    """Vendors charge for them, so an estimate that leaves them out is too low."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert answers.prompt_tokens(chat("hi")) == 3
    assert answers.prompt_tokens(chat("hi", response_format=schema)) > 20
    assert answers.prompt_tokens(chat("hi"), tokens_per_message=4) == 11


# -- answers


def test_an_answer_repeats_every_masked_token_of_the_last_user_message_once_and_none_in_part() -> None:
    prompt = "x" * 50 + " from [PERSON_AAAAA] to [EMAIL_7K2QM], copy [EMAIL_7K2QM] and [CARD_ZZZZZ] [not one]"
    answer = answers.answer_to(chat(prompt))
    assert answer == f'Answer about "{"x" * 50} from…": [PERSON_AAAAA] [EMAIL_7K2QM] [CARD_ZZZZZ]'
    assert answer == answers.answer_to(chat(prompt))


def test_a_marker_is_no_part_of_the_answer() -> None:
    assert answers.answer_to(chat("Hello [[double:slow]]")) == 'Answer about "Hello…"'


def test_the_last_user_message_may_come_in_parts() -> None:
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi [IP_ABCDE]"}, {"type": "image_url"}]}]
    }
    assert "[IP_ABCDE]" in answers.answer_to(body)


SCHEMA = {
    "type": "object",
    "$defs": {"Kind": {"enum": ["refund", "other"], "type": "string"}},
    "required": ["kind", "score", "share", "urgent", "tags", "note", "maybe", "day", "inner"],
    "properties": {
        "kind": {"$ref": "#/$defs/Kind"},
        "score": {"type": "integer", "minimum": 3, "maximum": 5},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        "urgent": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "note": {"type": "string", "maxLength": 10},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
        "day": {"type": "string", "format": "date"},
        "inner": {"allOf": [{"type": "object", "properties": {"a": {"type": ["null", "string"]}}}]},
    },
}


def test_json_answers_satisfy_simple_schemas() -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = orjson.loads(answers.answer_to(chat("Where is [ORDER_AAAAA]?", response_format=response_format)))
    assert answer["kind"] in ("refund", "other")
    assert 3 <= answer["score"] <= 5
    assert isinstance(answer["share"], float)
    assert 0 < answer["share"] <= 0.5
    assert isinstance(answer["urgent"], bool)
    assert len(answer["tags"]) == 2
    assert "[ORDER_AAAAA]" in answer["tags"][0]
    assert len(answer["note"]) == 10
    assert isinstance(answer["maybe"], int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", answer["day"])
    assert "[ORDER_AAAAA]" in answer["inner"]["a"]


def test_a_schema_that_contains_itself_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert orjson.dumps(answers.example_of(node, "x"))


def test_json_object_answers_are_objects() -> None:
    answer = orjson.loads(answers.answer_to(chat('say "hi"', response_format={"type": "json_object"})))
    assert answer == {"answer": 'Answer about "say "hi"…"'}


# -- embeddings


@given(st.text(min_size=1), st.integers(1, 64))
def test_vectors_have_length_one_and_only_the_text_decides_them(text: str, dimensions: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    vector = struct.unpack(f"<{dimensions}f", answers.unit_vector(text, dimensions))
    assert math.isclose(sum(v * v for v in vector), 1.0, rel_tol=1e-5)
    answers.unit_vector.cache_clear()
    assert vector == struct.unpack(f"<{dimensions}f", answers.unit_vector(text, dimensions))


def test_different_texts_have_different_vectors() -> None:
    assert len({answers.unit_vector(f"text {n}", 8) for n in range(100)}) == 100


# -- money

DECIMALS = st.decimals(min_value=0, max_value=200, places=5).map(str)
COUNTS = st.integers(0, 200_000)


@given(DECIMALS, DECIMALS, DECIMALS, COUNTS, COUNTS)
def test_a_cost_is_exact_but_for_half_a_nano_dollar(
    for_input: str, for_output: str, for_cached: str, cached: int, out: int
) -> None:
    usage = Usage(prompt_tokens=cached + 7, completion_tokens=out, cached_tokens=cached)
    cost = Price(for_input, for_output, for_cached).nano_per_token().cost(usage)
    exact = 1000 * (7 * Fraction(for_input) + cached * Fraction(for_cached) + out * Fraction(for_output))
    assert abs(cost - exact) <= Fraction(1, 2)


def test_a_known_cost() -> None:
    """1,000 input and 500 output tokens at 0.15 and 0.60 USD per Mtok are 0.00045 USD."""
    cost = Price("0.15", "0.60").nano_per_token().cost(Usage(1000, 500))
    assert Decimal(cost) / 10**9 == Decimal("0.00045")


@pytest.mark.parametrize("wrong", ["free", "-1", "NaN", "Infinity"])
def test_a_price_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="USD per million tokens"):
        Price("0.1", wrong)


def test_an_invoice_file_holds_each_line_as_soon_as_it_is_charged(tmp_path: Path) -> None:
    file = tmp_path / "new" / "invoice.jsonl"
    invoice = Invoice(file)
    lines = [InvoiceLine(f"req_{n}", "chat", "m", 1, 0, 2, 10 + n, "ok", 1.5, f"key {n}", None) for n in range(3)]
    for number, line in enumerate(lines, start=1):
        invoice.add(line)
        assert read_invoice(file) == lines[:number]
    assert invoice.total_nanodollars == 33
    invoice.reset()
    invoice.close()
    assert invoice.lines() == []
    assert read_invoice(file) == lines


# -- faults, latency, limits


def test_faults_come_at_their_rates_and_depend_on_seed_body_and_try_alone() -> None:
    odds = Faults(rate_429=0.2, rate_hang=0.1).odds()
    bodies = [b"body %d" % n for n in range(4000)]
    first = [fault_at(odds, draw_for(7, body, 0).fault) for body in bodies]
    assert first == [fault_at(odds, draw_for(7, body, 0).fault) for body in bodies]
    assert first != [fault_at(odds, draw_for(8, body, 0).fault) for body in bodies]
    assert first != [fault_at(odds, draw_for(7, body, 1).fault) for body in bodies]
    assert first.count(Fault.RATE_LIMITED) == pytest.approx(800, abs=100)
    assert first.count(Fault.HANG) == pytest.approx(400, abs=80)


def test_every_fault_has_a_rate_and_every_rate_a_fault() -> None:
    for fault in Fault:
        assert Faults(**{f"rate_{fault.value}": 1.0}).odds() == ((1.0, fault),)
    assert len(Faults.__slots__) == len(Fault)


@pytest.mark.parametrize("wrong", [{"rate_429": 1.1}, {"rate_500": -0.1}, {"rate_429": 0.6, "rate_hang": 0.6}])
def test_rates_that_are_no_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Faults(**wrong)


def test_latency_stays_within_its_jitter_and_above_zero() -> None:
    assert Latency(0.5, 0.1).at(0.0) == pytest.approx(0.4)
    assert Latency(0.5, 0.1).at(0.75) == pytest.approx(0.55)
    assert Latency(0.1, 0.5).at(0.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), max_size=60))
def test_no_stretch_of_a_window_holds_more_than_the_limit(steps: list[tuple[float, int]]) -> None:
    window, now, let_in = SlidingWindow(10, 5.0), 0.0, []
    for gap, amount in steps:
        now += gap
        if wait := window.wait(now, amount):
            assert 0 < wait <= 5.0
            assert window.wait(now, amount) == wait
        else:
            window.spend(now, amount)
            let_in.append((now, amount))
    for start, _ in let_in:
        assert sum(amount for at, amount in let_in if start <= at < start + 5.0) <= 10


def test_a_refused_request_fits_after_the_time_it_was_told() -> None:
    quotas = Quotas(Limits(requests_per_minute=2, tokens_per_minute=100))
    assert quotas.refusal("m", 60, 0.0) is None
    assert quotas.refusal("m", 60, 1.0).retry_after == 59.0  # type: ignore[union-attr]
    assert quotas.refusal("m", 40, 2.0) is None
    assert quotas.refusal("other", 60, 2.0) is None
    refusal = quotas.refusal("m", 1, 10.0)
    assert refusal is not None
    assert (refusal.status, refusal.type, refusal.headers()["retry-after"]) == (429, "requests", "50")
    assert quotas.refusal("m", 1, 60.0) is None
    assert dict(quotas.headers("m", 60.0))["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"latancy": 1},
        {"script": ["429", "oops"]},
        {"faults": {"rate_9": 1}},
        {"prices": {"m": {"input": "x", "output": "1"}}},
        {"prices": {"m": {"in": "1"}}},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|unexpected"):
        Behaviour().changed(wrong)


# -- what it saw


def test_a_journal_keeps_the_last_requests_in_memory_and_all_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    journal = Journal(file, keep=2)
    for name in ("one", "two", "张三"):
        headers = {"Authorization": "Bearer secret", "X-Team": "support"}
        journal.receive(1.0, "/v1/chat/completions", headers, b'{"a": [{"b": "%s"}]}' % name.encode("unicode_escape"))
    assert [r.number for r in journal.requests()] == [2, 3]
    assert journal.forgotten == 1
    assert [r.number for r in read_requests(file)] == [1, 2, 3]
    assert "张三" in list(journal.requests()[-1].texts())
    assert "secret" not in file.read_text()
    assert journal.requests()[0].headers == {"x-team": "support"}
