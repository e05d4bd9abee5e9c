"""Search terms: forms that must meet do meet."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.vectors.collection import terms


@pytest.mark.parametrize(
    "forms",
    [
        ["refund", "Refunds", "refunded", "refunding", "ＲＥＦＵＮＤ"],
        ["cancel", "cancels", "cancelled", "canceling", "cancelling"],
        ["policy", "policies"],
        ["charge", "charges", "charged", "charging"],
        ["customer", "customer's", "customers’"],
        ["cafe", "Café"],
        ["process", "processes", "processing"],
        ["退款", "退款。", "「退款」"],
    ],
)
def test_forms_of_a_word_meet(forms: list[str]) -> None:
    """All forms give the same one term."""
    found = [terms(form) for form in forms]
    assert all(term == found[0] for term in found)
    assert len(found[0]) == 1


def test_han_runs_become_overlapping_pairs() -> None:
    """Each pair in ASCII, a lone character by itself, words beside them whole."""
    assert terms("退款API慢") == ["zh9000z6b3e", "api", "zh6162"]


def test_stop_words_give_nothing() -> None:
    """Nothing to search for."""
    assert terms("How do I do this? 。！ -- __") == []


@given(st.text(max_size=200))
def test_terms_are_whole_words_to_any_analyzer(text: str) -> None:
    """Joined by spaces and cut at non-word characters, they come back as they were; and are stable."""
    found = terms(text)
    assert re.findall(r"\w+", " ".join(found).lower()) == found
    assert terms(text) == found
