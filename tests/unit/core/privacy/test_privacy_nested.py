"""Values of any nesting: what is found inside is masked, everything comes back as it was, and JSON stays JSON."""

from __future__ import annotations

import json
import re
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_privacy_invariants import MASKER, ROWS, TEXTS

from airflow_ai_provider.core.privacy.detectors.detector import KINDS
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules, RowMask
from airflow_ai_provider.core.privacy.masking.nested_values import RawJson, literals
from airflow_ai_provider.errors import PrivacyError

PERSONAL = ("ann@example.com", "13812345678", "Ann Lee", "李雷")


def row_mask() -> RowMask:
    rules = MaskingRules(frozenset(KINDS) - {"date"}, {"name": "PERSON", "cn": "PERSON"})
    return Masker(rules, b"k" * 32, "team/a").for_row({"name": "Ann Lee", "cn": "李雷"})


SCALARS = st.one_of(
    TEXTS,
    st.integers(),
    st.sampled_from([13812345678, 4111111111111111, 0, -1]),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.binary(max_size=12),
    TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.decimals(allow_nan=False, allow_infinity=False, places=2),
    st.dates(),
)
KEYS = st.one_of(TEXTS, st.integers(), st.sampled_from(PERSONAL))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)
PLAIN = st.recursive(
    st.one_of(TEXTS, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3), inner.map(json.dumps)
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and type throughout: ``1``, ``1.0`` and ``True`` are not the same here."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@settings(max_examples=400)
@given(row=ROWS, value=VALUES)
def test_restoring_undoes_masking_at_any_nesting(row: dict[str, object], value: Any) -> None:
    mask = MASKER.for_row(row)
    masked = mask.mask_value(value)
    assert same(mask.restore_value(masked), value)
    assert same(MASKER.for_row(row).mask_value(value), masked)


@settings(max_examples=400)
@given(row=ROWS, value=PLAIN, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_json_in_a_text_stays_json_and_comes_back_to_the_byte(
    row: dict[str, object], value: Any, indent: int | None, ascii_only: bool
) -> None:
    mask = MASKER.for_row(row)
    text = json.dumps([value], indent=indent, ensure_ascii=ascii_only)
    masked = mask.mask_value(text)
    json.loads(masked)
    assert mask.restore_value(masked) == text


@settings(max_examples=300)
@given(row=ROWS, text=st.lists(st.one_of(TEXTS, st.sampled_from([*'{}[]":,\\', '\\"', "\\u0041", '["', '"]']))))
def test_what_is_almost_json_comes_back_too(row: dict[str, object], text: list[str]) -> None:
    mask = MASKER.for_row(row)
    for whole in ("".join(text), '["' + "".join(text) + '"]'):
        assert mask.restore_value(mask.mask_value(whole)) == whole


def test_every_place_of_a_row_is_looked_at() -> None:
    """Keys, lists, tuples, numbers, bytes, JSON in strings in JSON, escapes that hide a letter."""
    row = {
        "ann@example.com": 1,
        "list": ["Ann Lee", ("李雷", 13812345678)],
        "number": Decimal("13812345678"),
        "bytes": "Ann Lee 电话13812345678".encode(),
        "json": '{"to": "ann\\u0040example.com", "phone": 13812345678, "n": 1.10}',
        "deep": json.dumps({"arguments": json.dumps({"name": "李雷", "big": 123456789012345678901})}),
        "day": date(2024, 1, 31),
        "flag": True,
        "none": None,
    }
    mask = row_mask()
    masked = mask.mask_value(row)
    shown = repr(masked) + masked["bytes"].decode()
    for value in (*PERSONAL, "\\u0040", "\\u674e"):
        assert value not in shown, value
    assert json.loads(masked["json"])["n"] == 1.1
    assert "1.10" in masked["json"]
    assert "123456789012345678901" in masked["deep"]
    assert json.loads(json.loads(masked["deep"])["arguments"])["name"].startswith("[PERSON_")
    assert (masked["flag"], masked["none"], masked["day"]) == (True, None, date(2024, 1, 31))
    assert same(mask.restore_value(masked), row)


def test_what_only_the_whole_text_tells_is_masked_inside_its_literal() -> None:
    """``password`` is a member's name, its value a string: neither tells by itself."""
    text = '{"user": "x", "password": "hunter2hunter2"}'
    masked = row_mask().mask_value(text)
    assert "hunter2" not in masked
    assert json.loads(masked)["user"] == "x"


def test_values_put_into_json_are_escaped() -> None:
    """A tool's arguments are JSON in a string of JSON: quotes, backslashes and line breaks of a value break neither."""
    value = 'Ann "the\\Lee"\nof'
    mask = Masker(MaskingRules(frozenset(), {"name": "PERSON"}), b"k" * 32, "s").for_row({"name": value})
    token = mask.mask(value)
    answer = json.dumps({"tool_calls": [{"arguments": json.dumps({"to": token, token: [token]})}]})
    restored = json.loads(mask.restore_value(answer))
    assert json.loads(restored["tool_calls"][0]["arguments"]) == {"to": value, value: [value]}
    assert mask.restore_value(f"no json: {token}") == f"no json: {value}"


def test_a_number_that_was_masked_is_a_number_again_where_it_stands_alone() -> None:
    mask = row_mask()
    token, text = mask.mask_value(13812345678), mask.mask_value("13812345678")
    assert token != text
    assert mask.restore_value([token, text, f"call {token}"]) == [13812345678, "13812345678", "call 13812345678"]


@pytest.mark.parametrize("value", ["A", "李", 7, b"x", ["A", {"k": 3}], ("A", None, True)])
def test_a_column_that_is_personal_is_hidden_whole(value: Any) -> None:
    """Also values too short to be looked for in texts."""
    mask = row_mask()
    hidden = mask.hide_value("PERSON", value)
    left = re.sub(r"\[PERSON_\w+\]", "", json.dumps(hidden, ensure_ascii=False))
    assert set(left) <= set('"[]{}(), knultre:'), left
    assert same(mask.restore_value(hidden), value)


def test_a_value_that_cannot_be_read_is_refused() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("Ann Lee")

    endless: list[Any] = []
    endless.append(endless)
    for value in ([Broken()], endless):
        with pytest.raises(PrivacyError) as caught:
            row_mask().mask_value(value)
        assert "Ann" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{}x", "[1,]", "{'a': 1}", "[EMAIL_7K2QM]", "1", '"a"', "[" * 100_000, "[" * 100_000 + "]" * 100_000]
)
def test_other_texts_are_no_json(text: str) -> None:
    assert literals(text) is None


def test_literals_are_strings_and_numbers_with_their_places() -> None:
    text = ' {"a\\"b": -1.5e3, "c": [true, "\\u0041"]} '
    found = literals(text)
    assert found is not None
    assert [(item.raw, item.content) for item in found] == [
        ('"a\\"b"', 'a"b'),
        ("-1.5e3", "-1.5e3"),
        ('"c"', "c"),
        ('"\\u0041"', "A"),
    ]
    assert all(text[item.start : item.end] == item.raw for item in found)
    assert str(RawJson("1")) == "1"
