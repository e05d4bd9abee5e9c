from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.detectors.text_view import LETTER, SYMBOL, WIDE, view


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("１３８－０１３８", b"138-0138"),
        ("ｗａｎｇ＠ｑｑ．ｃｏｍ", b"wang@qq.com"),
        ("（０１０）", b"(010)"),
        ("【EMAIL】［］", b"[EMAIL][]"),
        ("٠١٢ १२", b"012 12"),
        ("a–b—c\u00a0d\u3000e", b"a-b-c d e"),
        ("é电。", bytes([LETTER, WIDE, SYMBOL])),
        ("①²", bytes([SYMBOL, SYMBOL])),
    ],
)
def test_characters_become_the_byte_they_stand_for(text: str, data: bytes) -> None:
    assert view(text).data == data


@given(st.text())
def test_every_byte_leads_back_to_its_character(text: str) -> None:
    """Offsets survive: ASCII stands at the same place, and only invisible characters are left out."""
    seen = view(text)
    for index in range(len(seen.data)):
        start, end = seen.original(index, index + 1)
        assert end == start + 1
        if text[start].isascii():
            assert seen.data[index] == ord(text[start])
    assert len(seen.data) == len(text) or seen.positions is not None


def test_invisible_characters_inside_a_finding_belong_to_it() -> None:
    text = "a1\u200b2\u00ad3b"
    seen = view(text)
    assert seen.data == b"a123b"
    start, end = seen.original(1, 4)
    assert text[start:end] == "1\u200b2\u00ad3"
