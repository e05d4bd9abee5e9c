"""Exports of vendors become lines of one kind; what cannot be read names its place."""

from __future__ import annotations

import contextlib
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.ledger.reconcile.invoices import FORMATS, InvoiceLine, open_invoice
from airflow_ai_provider.core.ledger.reconcile.invoices.line import Place
from airflow_ai_provider.errors import SourceError
from airflow_ai_provider.testing.invoice import InvoiceLine as VendorLine
from airflow_ai_provider.testing.invoice import write_csv

DAY = date(2025, 8, 1)
MIDNIGHT = 1754006400
"""2025-08-01T00:00:00Z in Unix seconds."""


def read(content: str | bytes, wanted: Any = None) -> tuple[str, bool, list[InvoiceLine]]:
    raw = content.encode() if isinstance(content, str) else content
    invoice = open_invoice(io.BytesIO(raw), "export", wanted)
    return invoice.format, invoice.by_request, list(invoice.lines)


def openai_page(*results: dict[str, Any], **page: Any) -> dict[str, Any]:
    bucket = {"object": "bucket", "start_time": MIDNIGHT, "end_time": MIDNIGHT + 86400, "results": list(results)}
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None, **page}


def anthropic_page(*results: dict[str, Any], **page: Any) -> dict[str, Any]:
    bucket = {"starting_at": "2025-08-01T00:00:00Z", "ending_at": "2025-08-02T00:00:00Z", "results": list(results)}
    return {"data": [bucket], "has_more": False, "next_page": None, **page}


OPENAI_USAGE = {
    "object": "organization.usage.completions.result",
    "input_tokens": 1000,
    "output_tokens": 500,
    "input_cached_tokens": 800,
    "num_model_requests": 5,
    "project_id": None,
    "model": "gpt-4o-mini-2024-07-18",
}
OPENAI_COSTS = {
    "object": "organization.costs.result",
    "amount": {"value": 0.06, "currency": "usd"},
    "line_item": "gpt-4o-mini-2024-07-18, input",
}
ANTHROPIC_USAGE = {
    "uncached_input_tokens": 1500,
    "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
    "cache_read_input_tokens": 200,
    "output_tokens": 500,
    "model": "claude-haiku-4-5-20251001",
    "service_tier": "standard",
}
ANTHROPIC_COSTS = {
    "currency": "USD",
    "amount": "123.78912",
    "cost_type": "tokens",
    "description": "Claude Haiku 4.5 Usage - Input Tokens",
    "model": "claude-haiku-4-5-20251001",
    "token_type": "uncached_input_tokens",
}
PLAIN = (
    "attempt_id,vendor_request_id,model,at,input_tokens,output_tokens,cached_input_tokens,cache_write_tokens,cost_usd"
)


# Each format


def test_the_plain_csv_has_a_line_per_request() -> None:
    found = read(f"{PLAIN}\nabc,chatcmpl-1,gpt-4o-mini,2025-08-01T23:59:59-02:00,10,5,2,1,0.000000123\n")
    line = InvoiceLine(2, date(2025, 8, 2), "gpt-4o-mini", "abc", "chatcmpl-1", 1, 10, 5, 2, 1, Decimal(123))
    assert found == ("csv", True, [line])


def test_the_plain_csv_may_be_short_and_may_hold_more() -> None:
    text = '\ufeffnote,model,day,cost_usd,idempotency_key\r\n"a, b",m,2025-08-01,1,k1\r\n\r\nx,m,2025-08-01,1E-7,\r\n'
    _, by_request, (first, second) = read(text)
    assert by_request
    assert (first.attempt_id, first.cost_nano, first.input_tokens) == ("k1", 10**9, None)
    assert (second.attempt_id, second.cost_nano, second.number) == (None, 100, 4)


def test_the_plain_csv_without_ids_is_sums() -> None:
    _, by_request, (line,) = read("model,day,requests,cost_usd\nm,2025-08-01,12,0.5\n")
    assert not by_request
    assert (line.requests, line.cost_nano) == (12, 5 * 10**8)


def test_openais_usage() -> None:
    embeddings = {"object": "organization.usage.embeddings.result", "input_tokens": 7, "num_model_requests": 1}
    found, by_request, (first, second) = read(json.dumps(openai_page(OPENAI_USAGE, embeddings)))
    assert (found, by_request) == ("openai-usage", False)
    assert first == InvoiceLine(1, DAY, "gpt-4o-mini-2024-07-18", None, None, 5, 1000, 500, 800)
    assert (second.model, second.output_tokens, second.cost) == (None, None, None)


def test_openais_costs() -> None:
    ungrouped = {**OPENAI_COSTS, "line_item": None, "amount": {"value": "0.1", "currency": "usd"}}
    found, _, lines = read(json.dumps(openai_page(OPENAI_COSTS, ungrouped, {"object": "organization.costs.result"})))
    assert found == "openai-costs"
    assert [(line.model, line.cost) for line in lines] == [
        ("gpt-4o-mini-2024-07-18", Decimal(60_000_000)),
        (None, Decimal(100_000_000)),
    ]
    assert [line.requests for line in lines] == [None, None]


def test_openais_exports_as_csv() -> None:
    usage = (
        "start_time,end_time,start_time_iso,end_time_iso,num_model_requests,model,batch,"
        "input_tokens,output_tokens,input_cached_tokens\n"
        f"{MIDNIGHT},{MIDNIGHT + 86400},2025-08-01T00:00:00+00:00,,5.0,gpt-4o-2024-08-06,FALSE,59200.0,10646.0,5760.0\n"
        f"{MIDNIGHT + 86400},{MIDNIGHT + 172800},,,,,,,,\n"
    )
    found, _, (line,) = read(usage)
    assert (found, line.day, line.requests, line.input_tokens) == ("openai-usage", DAY, 5, 59200)
    costs = (
        "start_time,end_time,amount_value,amount_currency,line_item\n"
        f"{MIDNIGHT},{MIDNIGHT + 86400},0.003835980000000000000000000000,usd,\n"
        f'{MIDNIGHT},{MIDNIGHT + 86400},0.5,usd,"gpt-5-nano, input_tokens"\n'
        f"{MIDNIGHT},{MIDNIGHT + 86400},,,\n"
    )
    found, _, lines = read(costs)
    assert found == "openai-costs"
    assert [(line.model, line.cost) for line in lines] == [(None, Decimal(3_835_980)), ("gpt-5-nano", 5 * 10**8)]


def test_anthropics_usage() -> None:
    found, by_request, (line,) = read(json.dumps(anthropic_page(ANTHROPIC_USAGE)))
    assert (found, by_request) == ("anthropic-usage", False)
    assert line == InvoiceLine(1, DAY, "claude-haiku-4-5-20251001", None, None, None, 3200, 500, 200, 1500)


def test_anthropics_costs_are_in_cents() -> None:
    searches = {**ANTHROPIC_COSTS, "model": None, "cost_type": "web_search", "amount": "50"}
    ungrouped = {"currency": "USD", "amount": "1.5", "model": None, "cost_type": None}
    found, _, lines = read(json.dumps(anthropic_page(ANTHROPIC_COSTS, searches, ungrouped)))
    assert found == "anthropic-costs"
    assert [(line.model, line.cost_nano) for line in lines] == [
        ("claude-haiku-4-5-20251001", 1_237_891_200),
        ("web_search", 500_000_000),
        (None, 15_000_000),
    ]


def test_anthropics_exports_as_csv() -> None:
    usage = (
        "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
        "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
        "usage_output_tokens,web_search_count\n"
        "2025-08-01,claude-haiku-4-5-20251001,key,Default,standard,≤ 200k,1500,500,1000,200,500,0\n"
    )
    found, _, (line,) = read(usage)
    assert found == "anthropic-usage"
    assert line == InvoiceLine(2, DAY, "claude-haiku-4-5-20251001", None, None, None, 3200, 500, 200, 1500)
    costs = (
        "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,cost_type\n"
        "2025-08-01,Claude Haiku 4.5,Default,key,message,≤ 200k,output,0.02,token\n"
    )
    found, _, (line,) = read(costs)
    assert (found, line.model, line.cost_nano) == ("anthropic-costs", "Claude Haiku 4.5", 20_000_000)


def test_pages_may_stand_one_after_the_other_or_in_a_list() -> None:
    first, second = openai_page(OPENAI_USAGE, has_more=True), openai_page(OPENAI_USAGE)
    together = [json.dumps([first, second]), f"{json.dumps(first, indent=2)}\n{json.dumps(second)}\n"]
    assert [len(read(text)[2]) for text in together] == [2, 2]


def test_the_doubles_invoice_is_a_plain_csv(tmp_path: Path) -> None:
    line = VendorLine("req_1", "chat", "double", 10, 2, 5, 4501, "ok", MIDNIGHT + 0.5, "abc", None)
    write_csv([line], tmp_path / "export.csv")
    expected = InvoiceLine(2, DAY, "double", "abc", "chatcmpl-1", 1, 10, 5, 2, None, Decimal(4501))
    assert read((tmp_path / "export.csv").read_bytes()) == ("csv", True, [expected])


# What is wrong


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,,m,2025-08-01T00:00:00Z,1,1,1,1,", "export:2: cost_usd: expected an amount"),
        ("a,,m,2025-08-01T00:00:00Z,1,1,1,1,-0.1", "export:2: cost_usd: expected an amount"),
        ("a,,m,2025-08-01T00:00:00Z,1,1,1,1,NaN", "export:2: cost_usd: expected an amount"),
        ("a,,m,2025-08-01T00:00:00Z,1,1,1,1,1e99", "export:2: cost_usd: expected an amount"),
        ("a,,m,2025-08-01T00:00:00Z,1,1,1,1,0x10", "export:2: cost_usd: expected an amount"),
        ("a,,m,2025-08-01T00:00:00Z,1.5,1,1,1,1", "export:2: input_tokens: expected a whole number"),
        ("a,,m,2025-08-01T00:00:00Z,1,-1,1,1,1", "export:2: output_tokens: expected a whole number"),
        ("a,,m,yesterday,1,1,1,1,1", "export:2: at: expected a time"),
        ("a,,m,,1,1,1,1,1", "export:2: day: expected a day"),
        ("a,,,2025-08-01T00:00:00Z,1,1,1,1,1", "export:2: model: expected a text"),
        (f"{'a' * 101},,m,2025-08-01T00:00:00Z,1,1,1,1,1", "export:2: attempt_id: expected at most 100"),
        ("a,,m,2025-08-01T00:00:00Z,1,1,1,1", "export:2: expected 9 fields"),
        ('a,,"m,2025', "export:2: is no CSV, or was cut short"),
    ],
)
def test_a_bad_line_names_file_line_and_field_and_never_the_value(line: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(f"{PLAIN}\n{line}")
    assert str(caught.value).startswith(said)
    assert "nothing was changed" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "export: is empty"),
        ("  \n", "export: is empty"),
        ("a,b\n1,2\n", "export:1: its columns belong to no known format; expected our plain CSV"),
        ("model,model,cost_usd,day\n", "export:1: a column stands there twice"),
        ("{}", "export: is JSON of no known kind"),
        ('{"data": [', "export:1: is no JSON, or was cut short"),
        ('{"data":\n NaN}', "export:1: is no JSON, or was cut short"),
        (b"model,day,cost_usd\n\xff,2025-08-01,1\n", "export:1: is not UTF-8"),
        (json.dumps(openai_page(OPENAI_USAGE, has_more=True)), "export: has_more is true on its last page"),
        (
            json.dumps(openai_page({**OPENAI_USAGE, "object": "organization.usage.images.result"})),
            "export:page 1: data[0].results[0]: object: expected the usage of completions",
        ),
        (
            json.dumps(openai_page({**OPENAI_COSTS, "amount": {"value": 1, "currency": "eur"}})),
            "export:page 1: data[0].results[0]: amount.currency: expected USD",
        ),
        (
            json.dumps(anthropic_page(ANTHROPIC_USAGE, {"amount": "1", "currency": "USD"})),
            "export:page 1: data[0].results[1]: uncached_input_tokens: expected a messages usage report",
        ),
    ],
)
def test_a_file_that_is_no_invoice_says_why(content: str | bytes, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(content)
    assert str(caught.value).startswith(said)


def test_a_bucket_wider_than_a_day_is_refused() -> None:
    page = openai_page(OPENAI_USAGE)
    page["data"][0]["end_time"] += 1
    with pytest.raises(SourceError, match="expected a bucket within one UTC day"):
        read(json.dumps(page))


@pytest.mark.parametrize("wanted", FORMATS)
def test_a_format_that_is_forced_must_fit(wanted: Any) -> None:
    for name, content in {
        "csv": f"{PLAIN}\n",
        "openai-usage": json.dumps(openai_page(OPENAI_USAGE)),
        "anthropic-costs": json.dumps(anthropic_page(ANTHROPIC_COSTS)),
    }.items():
        if name == wanted:
            assert read(content, wanted)[0] == wanted
        else:
            with pytest.raises(SourceError):
                read(content, wanted)


# Any money, any bytes


@given(nano=st.integers(0, 10**18 - 1), finer=st.integers(0, 10**30 - 1))
def test_money_is_exact_to_the_last_digit(nano: int, finer: int) -> None:
    text = f"{nano // 10**9}.{nano % 10**9:09d}{finer:030d}"
    (line,) = read(f"model,day,cost_usd\nm,2025-08-01,{text}\n")[2]
    assert line.cost is not None
    numerator, denominator = line.cost.as_integer_ratio()
    assert numerator * 10**30 == (nano * 10**30 + finer) * denominator
    assert line.cost_nano == nano + (finer > 0)


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_whatever_the_file_holds_it_is_lines_or_an_error_of_ours(content: bytes) -> None:
    try:
        read(content)
    except SourceError:
        return
    read(content)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "results", "amount"]), inner),
    max_leaves=8,
)


@given(value=_JSON, wanted=st.sampled_from([name for name in FORMATS if name != "csv"]))
def test_whatever_the_json_holds_it_is_lines_or_an_error_of_ours(value: Any, wanted: Any) -> None:
    usage = openai_page({**OPENAI_USAGE, "model": value, "input_tokens": value})
    with contextlib.suppress(SourceError):
        read(json.dumps([value, usage, openai_page({**OPENAI_COSTS, "amount": value}), {"data": value}]), wanted)


@given(value=st.text(max_size=30) | st.integers() | st.floats() | st.none())
def test_every_field_is_read_or_refused(value: Any) -> None:
    place = Place("export", "1")
    for method in (place.count, place.usd, place.cents, place.moment, place.day, place.text, place.currency):
        with contextlib.suppress(SourceError):
            method("field", value)
