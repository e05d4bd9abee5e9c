from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.privacy.known import KnownValues


def found(value: Any, text: str) -> list[str]:
    spans = KnownValues({"name": value}, {"name": "PERSON", "absent": "CITY"}).find(text)
    return [text[span.start : span.end] for span in spans]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("Ann Lee", "Ann Lee"),
        ("Ann Lee", "ANN LEE"),
        ("ann lee", "Ann  \n Lee"),
        (" Ann\tLee ", "Ann\u00a0Lee"),
        ("Ann Lee", "Ａｎｎ　Ｌｅｅ"),
        ("Ann Lee", "A\u200bnn L\u00adee"),
        ("José Peña", "Jose\u0301 PEÑA"),
        ("Jose", "José"),
        ("O'Brien", "O’Brien"),
        ("Jean-Luc", "Jean–Luc"),
        ("İpek", "ipek"),
        ("张伟", "张伟"),
        ("张伟", "张 伟"),
        ("张　伟", "张伟"),
        ("张\n伟", "张\u200b伟"),
        ("Ann Lee", "Ann\n\n\nLee"),
    ],
)
@pytest.mark.parametrize("frame", ["{}", "Dear {}, hello", "客户{}的订单", "\n\n  x  {}  y\n\n", "\u200b{}\u200b."])
def test_a_value_is_found_as_it_is_written(value: str, written: str, frame: str) -> None:
    assert found(value, frame.format(written)) == [written]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Ann", "Anniversary, Joann, éAnn"),
        ("Ann Lee", "Ann and Lee; AnnLees; Lee"),
        ("A", "A"),
        ("--", "a -- b"),
        ("  ", "a   b"),
        ("", "abc"),
        (None, "None"),
        (True, "True"),
        (float("nan"), "nan"),
    ],
)
def test_parts_of_words_and_empty_values_are_not_found(value: Any, text: str) -> None:
    assert found(value, text) == []


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        ("Ann", "Ann3 3ann ann_", ["Ann", "ann", "ann"]),
        (90210, "zip 90210, CA90210, not 902101", ["90210", "90210"]),
        (decimal.Decimal("12.50"), "12.50", ["12.50"]),
        (datetime.date(1990, 3, 7), "born 1990-03-07", ["1990-03-07"]),
        (b"Ann", "Ann", ["Ann"]),
        (["Ann", {"last": "Lee"}], "Ann Bo Lee", ["Ann", "Lee"]),
    ],
)
def test_cells_of_any_type_are_found_between_letters_and_digits(value: Any, text: str, expected: list[str]) -> None:
    assert sorted(found(value, text)) == sorted(expected)


@given(
    name=st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=2, max_size=8),
    before=st.text(max_size=10),
    after=st.text(max_size=10),
)
def test_a_value_between_blanks_is_always_covered(name: str, before: str, after: str) -> None:
    text = f"{before} ; {name} ; {after}"
    spans = list(KnownValues({"name": name}, {"name": "PERSON"}).find(text))
    start = len(before) + 3
    covered = {index for span in spans for index in range(span.start, span.end)}
    assert covered >= set(range(start, start + len(name)))
