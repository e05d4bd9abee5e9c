"""Canonical JSON equals RFC 8785 on everything the trail may hold."""

from __future__ import annotations

from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.audit.trail.chain import MAX_INTEGER, canonical
from airflow_ai_provider.errors import AuditError

KEYS = st.text(st.characters(max_codepoint=127), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=20
)


@given(VALUES)
def test_equals_the_reference_implementation(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


def test_every_code_point_is_escaped_as_the_standard_says() -> None:
    """All of Unicode, control characters, U+007F and U+2028 among them."""
    for start in range(0, 0x110000, 0x800):
        if 0xD800 <= start < 0xE000:
            continue
        text = "".join(map(chr, range(start, start + 0x800)))
        assert canonical([text]) == rfc8785.dumps([text])


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        float("nan"),
        MAX_INTEGER + 1,
        -MAX_INTEGER - 1,
        "\ud800",
        {"\udfff": 1},
        {"é": 1},
        {1: 1},
        (1,),
        b"x",
        {"a": [{"b": 0.5}]},
        {"a": object()},
    ],
)
def test_values_outside_the_space_are_refused(value: Any) -> None:
    with pytest.raises(AuditError):
        canonical(value)


def test_refusal_names_the_place() -> None:
    with pytest.raises(AuditError, match=r"value\.a\[1\]\.b: float is not allowed"):
        canonical({"a": [1, {"b": 0.5}]})


def test_deep_nesting_is_refused_not_a_stack_overflow() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(AuditError, match="nested deeper"):
        canonical(value)
