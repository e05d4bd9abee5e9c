"""What must hold for any text, tried on texts dense with what could break it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.detectors.detector import KINDS, Detector
from airflow_ai_provider.core.privacy.masking.known_values import KnownValues
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules

RULES = MaskingRules(
    frozenset(KINDS), {"name": "PERSON", "note": "ID"}, patterns={"EMPLOYEE": r"E-\d{6}"}, allow=("555-0123",)
)
MASKER = Masker(RULES, b"k" * 32, "team/a")
DETECTOR = Detector(KINDS, patterns=RULES.patterns, allow=RULES.allow)

_PIECES = [
    *("13812345678", "+86", "138 1234 5678", "(212) 555-0123", "555-0123", "4111 1111 1111 1111"),
    *("11010119900307109X", "GB29 NWBK 6016 1331 9268 19", "192.168.1.1", "fe80::1", "a@b.co", "foo@bar.com"),
    *("https://u:p@h.io/x", "Ann", "ann", "张伟", "身份证", "电话", "phone", "card no", "IBAN", "[EMAIL_7K2QM]"),
    *("PHONE_7K2QM", "PERSON", "EMAIL", "7K2QM", "TEXT_", "sk-abcdefghij0123456789", "password="),
    *("-----BEGIN PRIVATE KEY-----", "&#91;", "&#93;", "\\", "\\[", "[", "]", "_", "-", " ", "  ", "\n", "."),
    *(":", "::", "/", "@", "+", "(", ")", "x", "X", "转", "１", "2", "12", "1234", "\u200b", "（", "，", "é"),
    *("。", "$", "=", "%eth0", "0", "\u0301", "123-45-6789", "护照E12345678", "passport ", "E1234567"),
    *("京A12345", "京", "建国路88号", "路", "号", "1990年5月12日", "出生", "born ", "1990-05-12", "12 May 1990"),
    *("http://a.b/c", "www.a.io", "00:1A:2B:3C:4D:5E", "密码", "是", "hunter22", "token ", "E-123456", "Lee"),
    *("Lee, Ann", "account ", "账号", "(mobile)", "-Fax", "driver's license ", "卡号", "12 Main Street"),
]
PIECES = st.sampled_from(_PIECES)
TEXTS = st.one_of(st.lists(PIECES, max_size=14).map("".join), st.text(max_size=60))
ROWS = st.fixed_dictionaries(
    {
        "name": st.one_of(
            st.just("Ann"), st.just("Ann Lee"), st.just("张伟"), st.lists(PIECES, max_size=3).map("".join), st.none()
        ),
        "note": st.one_of(st.integers(), st.just("foo"), st.text(max_size=4)),
    }
)


@settings(max_examples=500, deadline=None)
@given(row=ROWS, text=TEXTS)
def test_restoring_undoes_masking(row: dict[str, object], text: str) -> None:
    mask = MASKER.for_row(row)
    masked = mask.mask(text)
    assert mask.restore(masked) == text
    assert MASKER.for_row(row).mask(text) == masked


@settings(max_examples=500, deadline=None)
@given(row=ROWS, text=TEXTS)
def test_a_masked_text_holds_nothing_personal(row: dict[str, object], text: str) -> None:
    """Outside its tokens, nothing is found that the detectors or the row's columns name."""
    mask = MASKER.for_row(row)
    masked = mask.mask(text)
    inside = set()
    for token in mask.tokens:
        start = masked.find(token)
        while start >= 0:
            inside.update(range(start, start + len(token)))
            start = masked.find(token, start + 1)
    for span in [*DETECTOR.find(masked), *KnownValues(row, RULES.columns).find(masked)]:
        assert inside.issuperset(range(span.start, span.end)), span
    mask.check(masked)


@settings(max_examples=150, deadline=None)
@given(row=ROWS, texts=st.lists(TEXTS, min_size=2, max_size=4))
def test_the_texts_of_a_row_share_tokens(row: dict[str, object], texts: list[str]) -> None:
    """A token stands for one value in all texts of the row, and every text comes back."""
    mask = MASKER.for_row(row)
    masked = [mask.mask(text) for text in texts]
    assert [mask.restore(text) for text in masked] == texts
    assert mask.restore("\0".join(masked)) == "\0".join(texts)


@settings(max_examples=150, deadline=None)
@given(mine=TEXTS, theirs=TEXTS)
def test_another_rows_values_never_appear(mine: str, theirs: str) -> None:
    """Another row's masked text, given to this row as an answer, restores to nothing that was not its own."""
    other = MASKER.for_row({"name": "Ann"})
    answer = other.mask(theirs)
    mask = MASKER.for_row({"name": "张伟"})
    mask.mask(mine)
    restored = mask.restore(answer)
    for token, value in other.tokens.items():
        if token not in mask.tokens:
            assert answer.count(token) == 0 or token in restored, value
