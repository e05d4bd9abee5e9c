from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.detectors.text_view import view
from airflow_ai_provider.core.privacy.masking import tokens
from airflow_ai_provider.core.privacy.masking.tokens import TokenPattern

PATTERN = TokenPattern(["EMAIL", "CN_ID", "ID", "TEXT"])
KEY = b"k" * 32


def found(text: str) -> list[str]:
    return [item.token for item in PATTERN.find(view(text))]


@pytest.mark.parametrize(
    "form",
    [
        "[CN_ID_7K2QM]",
        "[cn_id_7k2qm]",
        "CN_ID_7K2QM",
        "cn-id-7k2qm",
        "[CN ID 7K2QM]",
        "[CN-ID 7K2QM",
        r"\[CN\_ID\_7K2QM\]",
        r"CN\_ID\_7K2QM",
        "**[CN_ID_7K2QM]**",
        "`CN_ID_7K2QM`",
        "(CN_ID_7K2QM)",
        "&#91;CN_ID_7K2QM&#93;",
        "&lbrack;CN&#95;ID&lowbar;7K2QM&rbrack;",
        "［ＣＮ＿ＩＤ＿７Ｋ２ＱＭ］",
        "【CN_ID_7K2QM】",
        "[CN_ID_7K2QM](mailto:x)",
        "客户CN_ID_7K2QM的",
        "[CN__ID_ 7K2QM]",
        "%5BCN_ID_7K2QM%5D",
        "https://x/?to=%5Bcn%5Fid%5f7k2qm%5d&y",
        "[CN_ID:7K2QM]",
        "[CN_ID: 7K2QM]",
        "[CN_ID_\n7K2QM]",
        "[CN_ID7K2QM]",
        "[CN_\u200bID_7K2\u00adQM]",
        "{CN_ID_7K2QM}",
        "<CN_ID_7K2QM>",
        "[[CN_ID_7K2QM]]",
        "CN_ID\u20137K2QM's",
    ],
)
def test_what_models_make_of_a_token_is_still_found(form: str) -> None:
    assert found(form) == ["[CN_ID_7K2QM]"]


@pytest.mark.parametrize(
    "text",
    [
        "[CN_ID_7K2Q]", "[CN_ID_7K2QO]", "xCN_ID_7K2QM", "CN_ID_7K2QMo", "CN ID 7K2QM", "id 23456", "[ID_23456]",
        "email-react", "[EMAIL_REACT]", "[PHONE_7K2QM]", "[7K2QM]", "CN_ID_", "",
        "CN_ID: 7K2QM", "CN_ID7K2QM", "[CN_ID: 7K2QM", "CN_ID\n7K2QM]", "[CNID_7K2QM]", "5BEMAIL_7K2QM",
    ],
)  # fmt: skip
def test_other_words_are_no_tokens(text: str) -> None:
    """Codes have a letter and a digit; a bare type and code are joined by more than a blank; edges count."""
    assert found(text) == []


def test_a_backslash_before_an_unchanged_token_is_the_texts_own() -> None:
    (item,) = PATTERN.find(view("C:\\[EMAIL_7K2QM]"))
    assert (item.start, item.end) == (3, 16)


def test_a_token_of_any_type_is_known_by_its_exact_form() -> None:
    """What a model invents need not be of the profile's types."""
    text = "[NAME_7K2QM] [EMAIL_ABCDE] [email_7K2QM] 【HOME_CITY_22A23】 NAME_7K2QM"
    assert [item.token for item in tokens.exact(view(text))] == ["[NAME_7K2QM]", "[HOME_CITY_22A23]"]


@given(st.text(max_size=20), st.text(max_size=20))
def test_codes_are_well_formed_and_stable(scope: str, value: str) -> None:
    symbols = tokens.code_symbols(KEY, scope, "EMAIL", value)
    assert symbols == tokens.code_symbols(KEY, scope, "EMAIL", value)
    for length in (tokens.SHORTEST, tokens.LONGEST):
        token = tokens.write("EMAIL", symbols[:length])
        assert found(token) == [token]


def test_codes_depend_on_key_scope_type_and_value() -> None:
    codes = [
        tokens.code_symbols(KEY, "team/a", "EMAIL", "x"),
        tokens.code_symbols(b"j" * 32, "team/a", "EMAIL", "x"),
        tokens.code_symbols(KEY, "team/b", "EMAIL", "x"),
        tokens.code_symbols(KEY, "team/a", "ID", "x"),
        tokens.code_symbols(KEY, "team/a", "EMAIL", "X"),
        tokens.code_symbols(KEY, "team/aEMAIL", "", "x"),
    ]
    assert len({code[: tokens.SHORTEST] for code in codes}) == len(codes)


def test_codes_never_change() -> None:
    """A cleared task a month later must mint the same tokens: reuse keys hold them."""
    assert tokens.code_symbols(KEY, "team/a", "EMAIL", "a@example.com")[:8] == "XVJ8W5JX"


@given(st.binary(max_size=150), st.binary(max_size=150))
def test_codes_come_from_hmac(key: bytes, message: bytes) -> None:
    assert tokens._mac(key, message) == hmac.digest(key, message, "sha256")
