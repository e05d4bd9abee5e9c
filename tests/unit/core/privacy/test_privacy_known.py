from __future__ import annotations

import datetime
import decimal
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.masking.known_values import KnownValues, fold, in_every_form, variants


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


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Ada Lovelace", "Lovelace Ada"),
        ("Ada Lovelace", "LOVELACE, Ada"),
        ("Lovelace, Ada", "Ada Lovelace"),
        ("Ada Lovelace", "A. Lovelace"),
        ("Ada Lovelace", "A.Lovelace"),
        ("Ada Lovelace", "Lovelace, A."),
        ("Ada King Lovelace", "Ada Lovelace"),
        ("Ada King Lovelace", "Ada K. Lovelace"),
        ("Ada King Lovelace", "A. K. Lovelace"),
        ("Ada Lovelace", "Mrs. Lovelace"),
        ("Ada Lovelace", "Frau Lovelace"),
        ("Anna-Maria Müller", "anna maria muller"),
        ("Anna-Maria Müller", "Müller, Annamaria"),
        ("Zhang Wei", "Wei Zhang"),
        ("Zhang Wei", "ZhangWei"),
        ("Zhang Wei", "weizhang"),
        ("Xiao-Ming Li", "Li Xiaoming"),
        ("张伟", "张先生"),
        ("欧阳修", "欧阳老师"),
    ],
)
def test_a_name_is_found_in_its_other_forms(name: str, written: str) -> None:
    assert found(name, f"Dear {written}, hello") == [written]
    many = {f"c{index}": f"Name{index} Family{index}" for index in range(100)} | {"name": name}
    spans = KnownValues(many, dict.fromkeys(many, "PERSON")).find(f"Dear {written}, hello")
    assert [span.start for span in spans] == [5]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Ada Lovelace", "Ada, Mr Smith and Lovelace"),
        ("Ada Lovelace", "a lovelace, B. Lovelace"),
        ("Bo Li", "B. Li, Mr Li"),
        ("12 Main Street", "Street Main 12"),
        ("张伟", "王先生 伟先生"),
        ("Ann", "Anne, A., Mr A"),
    ],
)
def test_forms_that_mean_too_much_are_not_names(name: str, text: str) -> None:
    assert found(name, text) == []


def test_values_to_be_left_alone_are_told_apart() -> None:
    values = KnownValues({"name": "Ann Lee", "order": "13812345678"}, {"name": "PERSON"}, skip=["order", "absent"])
    text = "Ann Lee, order 138-1234-5678 or 13812345678"
    assert [text[s.start : s.end] for s in values.find(text)] == ["Ann Lee"]
    assert [text[s.start : s.end] for s in values.find_skipped(text)] == ["13812345678"]


@given(
    given_name=st.text(st.characters(categories=["Lu", "Ll"], max_codepoint=0x24F), min_size=3, max_size=8),
    family=st.text(st.characters(categories=["Lu", "Ll"], max_codepoint=0x24F), min_size=3, max_size=8),
)
def test_a_reversed_name_is_always_covered(given_name: str, family: str) -> None:
    text = f"to {family}, {given_name}!"
    spans = KnownValues({"name": f"{given_name} {family}"}, {"name": "PERSON"}).find(text)
    assert {index for span in spans for index in range(span.start, span.end)} >= set(range(3, len(text) - 1))


def test_a_thousand_values_cost_a_few_passes_over_the_text() -> None:
    """A ratio on one machine: 100 times the values take far less than 100 times as long."""
    text = "Dear Ann Lee, your card was sent to Bo Day on Monday; please call us. " * 300

    def seconds(count: int) -> float:
        row = {f"c{index}": f"Given{index} Family{index}" for index in range(count)}
        known = KnownValues(row, dict.fromkeys(row, "PERSON"))
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            assert list(known.find(text)) == []
            best = min(best, time.process_time() - started)
        return best

    assert seconds(1000) < 20 * seconds(10)


NAMES = st.one_of(
    st.text(alphabet="abçÑ'-. ,", min_size=1, max_size=16),
    st.lists(st.sampled_from(["ann", "lee", "smith-jones", "o'neil", "van", "j.", "li,"]), max_size=5).map(" ".join),
    st.text(alphabet="欧阳司马张伟", min_size=1, max_size=4),
)


@given(NAMES.map(fold).map(str.strip).filter(bool))
def test_what_is_in_every_form_of_a_name_is_in_every_form(name: str) -> None:
    assert all(in_every_form(name) in form for form in (name, *variants(name)))


@given(NAMES, st.sampled_from(["{}", "x {} y", "[{}]"]), st.integers(0, 40), st.booleans())
def test_a_name_among_many_is_found_as_it_is_alone(name: str, frame: str, form: int, spread: bool) -> None:
    forms = (name, *variants(fold(name).strip()))
    text = frame.format(forms[form % len(forms)])
    text = text.replace(" ", "  ") if spread else text
    alone = [(span.start, span.end) for span in KnownValues({"n": name}, {"n": "PERSON"}).find(text)]
    others = [f"zq{number}" for number in range(40)]
    among = [(span.start, span.end) for span in KnownValues({"n": [name, *others]}, {"n": "PERSON"}).find(text)]
    assert alone == among


def test_the_same_text_is_answered_the_same_when_asked_again() -> None:
    known = KnownValues({"n": "Ann Lee"}, {"n": "PERSON"})
    texts = ["nothing", "Ann Lee", "nothing", "Dear Ann Lee", "nothing"]
    assert [len(known.find(text)) for text in texts for _ in range(2)] == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
