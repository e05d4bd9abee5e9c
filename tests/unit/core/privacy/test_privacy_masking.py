from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.detectors.detector import KINDS
from airflow_ai_provider.core.privacy.masking import masker as masking
from airflow_ai_provider.core.privacy.masking import tokens
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules, RowMask
from airflow_ai_provider.core.privacy.masking.nested_values import unescaped
from airflow_ai_provider.errors import PrivacyError

KEY = b"k" * 32
RULES = MaskingRules(frozenset(KINDS), {"name": "PERSON", "city": "PLACE"})
ROW = {"id": 7, "name": "Ann Lee", "city": None}


def row_mask(row: dict[str, Any] | None = None, scope: str = "team/a", key: bytes = KEY) -> RowMask:
    return Masker(RULES, key, scope).for_row(ROW if row is None else row)


def test_values_and_findings_become_typed_tokens_and_return() -> None:
    mask = row_mask()
    text = "Ann Lee <ann@example.com>, 电话13812345678"
    masked = mask.mask(text)
    code = f"[{tokens.ALPHABET}]{{5}}"
    assert re.fullmatch(rf"\[PERSON_{code}\] <\[EMAIL_{code}\]>, 电话\[PHONE_{code}\]", masked)
    assert sorted(mask.tokens.values()) == ["13812345678", "Ann Lee", "ann@example.com"]
    assert mask.restore(masked) == text


def test_a_value_has_the_same_token_in_its_scope_and_another_elsewhere() -> None:
    """Retries, other rows and other processes repeat tokens; scopes and keys share none."""
    text = "write to ann@example.com"
    again = row_mask({"name": "Bo"}).mask(text)
    assert row_mask().mask(text) == again
    assert row_mask(scope="team/b").mask(text) != again
    assert row_mask(key=b"j" * 32).mask(text) != again


def test_each_way_of_writing_a_value_is_given_back_as_written() -> None:
    mask = row_mask()
    text = "Ann Lee, ANN LEE, Ann\nLee"
    masked = mask.mask(text)
    assert "nn" not in masked.lower()
    assert len(mask.tokens) == 3
    assert mask.restore(masked) == text


@pytest.mark.parametrize("name", ["Ann", "Bo", "李"])
def test_short_values_are_hidden_whole(name: str) -> None:
    masked = row_mask({"name": name}).mask("Bo and Ann")
    assert name not in masked


def test_a_number_that_touches_a_name_is_masked_too() -> None:
    """Only once the name is gone does the number stand alone."""
    mask = row_mask()
    masked = mask.mask("Ann Lee13812345678")
    assert sorted(mask.tokens.values()) == ["13812345678", "Ann Lee"]
    assert mask.restore(masked) == "Ann Lee13812345678"


def test_overlapping_findings_are_masked_together() -> None:
    """A name inside an address, and a name that runs into one: no part stays readable."""
    mask = row_mask({"name": "ann", "city": "Rome ann"})
    masked = mask.mask("Rome ann@example.com and ann")
    assert "Rome" not in masked
    assert "ann" not in masked
    assert next(iter(mask.tokens.values())) == "Rome ann@example.com"


def test_known_values_win_over_equally_long_findings() -> None:
    mask = row_mask({"name": "ann@example.com"})
    assert mask.mask("ann@example.com").startswith("[PERSON_")


def test_a_token_of_another_row_cannot_be_smuggled_in() -> None:
    """Text that reads as a token is masked itself, in every form that restoring would accept."""
    theirs = row_mask()
    (token,) = [theirs.mask("ann@example.com")]
    bare = token.strip("[]")
    mask = row_mask({"name": "Bo"})
    for form in (token, bare, token.lower(), rf"\[{bare}\]", bare.replace("_", "-"), f"&#91;{bare}&#93;"):
        masked = mask.mask(f"tell me {form} and ann@example.com")
        assert masked.count(token) == 1
        assert "[TEXT_" in masked
        assert mask.restore(masked) == f"tell me {form} and ann@example.com"


def test_tokens_of_other_rows_stay_as_they_are() -> None:
    theirs = row_mask().mask("ann@example.com")
    mask = row_mask({"name": "Bo"})
    mask.mask("bo@example.com")
    assert mask.restore(f"{theirs} [EMAIL_22A22]") == f"{theirs} [EMAIL_22A22]"


@pytest.mark.parametrize(
    "mangle",
    [
        str.lower,
        lambda token: rf"\{token}",
        lambda token: rf"\[{token[1:-1]}\]".replace("_", r"\_"),
        lambda token: token.strip("[]"),
        lambda token: token.replace("_", "-"),
        lambda token: token.replace("_", " "),
        lambda token: f"&#91;{token[1:-1]}&#93;",
        lambda token: "".join(chr(ord(char) + 0xFEE0) for char in token),
        lambda token: f"【{token[1:-1]}】",
    ],
)
def test_tokens_that_a_model_changed_are_restored(mangle: Any) -> None:
    mask = row_mask()
    token = mask.mask("ann@example.com")
    restored = mask.restore(f"Mail: {mangle(token)}.")
    assert restored.replace("\\", "") == "Mail: ann@example.com."


def test_restored_text_is_not_looked_at_again() -> None:
    """A value that reads as a token, or holds backslashes and group references, comes back as it was."""
    mask = row_mask({"name": r"\1 \g<0> C:\new"})
    text = r"it is \1 \g<0> C:\new or [PHONE_7K2QM], ann@example.com"
    masked = mask.mask(text)
    assert mask.restore(masked) == text
    assert mask.restore(mask.restore(masked)) == text


def test_a_record_of_its_own_shares_no_token_with_another() -> None:
    """Scope ``row``: the same value twice in a row has one token, in two rows it has two."""
    masker = Masker(RULES, KEY, "team/a")
    first, again, second = (masker.for_row(ROW, record).mask("ann@example.com") for record in ("r1", "r1", "r2"))
    assert first == again != second
    assert masker.for_row(ROW).mask("ann@example.com") not in (first, second)


def test_colliding_codes_grow_in_either_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two values never share a token; within one text the outcome does not depend on their order."""

    def symbols(key: bytes, scope: str, entity: str, value: str) -> str:
        return "7K2QM" + {"a": "A", "b": "C", "c": "D"}[value[0]] * 19

    monkeypatch.setattr(masking.tokens, "code_symbols", symbols)
    mask, other = row_mask(), row_mask()
    masked = mask.mask("a@example.com b@example.com")
    assert masked == "[EMAIL_7K2QMA] [EMAIL_7K2QMC]"
    assert other.mask("b@example.com a@example.com") == "[EMAIL_7K2QMC] [EMAIL_7K2QMA]"
    alone = row_mask()
    assert alone.mask("a@example.com") == "[EMAIL_7K2QM]"
    assert alone.mask("c@example.com") == "[EMAIL_7K2QMD]"
    assert alone.mask("a@example.com") == "[EMAIL_7K2QM]"
    assert alone.restore("[EMAIL_7K2QM] [EMAIL_7K2QMD]") == "a@example.com c@example.com"


def test_structures_are_restored_inside() -> None:
    mask = row_mask()
    token = mask.mask("ann@example.com")
    answer = {token: [token, {"n": 1, "to": f"<{token}>"}], "ok": True, "none": None, "x": 1.5}
    assert mask.restore_value(answer) == {
        "ann@example.com": ["ann@example.com", {"n": 1, "to": "<ann@example.com>"}],
        "ok": True,
        "none": None,
        "x": 1.5,
    }
    assert mask.restore_value({token: 1, token.lower(): 2}) == {"ann@example.com": 1, token.lower(): 2}


def test_without_rules_only_token_like_text_changes() -> None:
    mask = Masker(MaskingRules(frozenset(), {}), KEY, "s").for_row(ROW)
    assert mask.mask("Ann Lee ann@example.com") == "Ann Lee ann@example.com"
    assert mask.restore(mask.mask("[TEXT_7K2QM]")) == "[TEXT_7K2QM]"


def test_masking_fails_closed_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the message nor the chain of an unexpected error holds the text."""

    def broken(text: str) -> None:
        raise ValueError(f"cannot handle {text}")

    mask = row_mask()
    mask.mask("ann@example.com")
    monkeypatch.setattr(masking.text_view, "view", broken)
    for action in (mask.mask, mask.restore):
        with pytest.raises(PrivacyError, match="ValueError") as caught:
            action("my secret is 42")
        assert "42" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


def test_a_cell_that_cannot_be_read_stops_the_row() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("Ann Lee")

    with pytest.raises(PrivacyError, match="RuntimeError") as caught:
        row_mask({"name": Broken()})
    assert "Ann" not in str(caught.value)


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(PrivacyError):
        row_mask().mask(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("detect", "columns", "message"),
    [
        ({"email", "diagnosis"}, {}, "'diagnosis'.*phone"),
        (set(), {"name": "person"}, "'name'.*PERSON"),
        (set(), {"name": "PERSON_"}, "'name'"),
        (set(), {"name": ""}, "'name'"),
    ],
)
def test_wrong_rules_are_refused(detect: set[str], columns: dict[str, str], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        MaskingRules(frozenset(detect), columns)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(PrivacyError, match="16 bytes"):
        Masker(RULES, b"short", "s")


def test_values_do_not_show() -> None:
    mask = row_mask()
    mask.mask("ann@example.com")
    assert repr(mask) == "RowMask(1 tokens)"
    assert repr(Masker(RULES, KEY, "s")) == "Masker(scope='s')"


def test_lone_surrogates_pass_through() -> None:
    """What a broken decoder leaves in a text neither stops masking nor gets lost."""
    mask = row_mask({"name": "\ud800nn"})
    text = "\ud800nn \udfff ann@example.com"
    assert mask.restore(mask.mask(text)) == text
    assert len(mask.tokens) == 2


# What a profile can choose


def masked_by(text: str, row: dict[str, Any] | None = None, **rules: Any) -> str:
    """A text masked by some rules, with the codes of tokens left out."""
    masked = Masker(MaskingRules(**rules), KEY, "team/a").for_row(row or {}).mask(text)
    return re.sub(r"_[2-9A-Z]{5,}\]", "]", masked)


def test_confidence_decides_whether_a_telling_word_is_enough() -> None:
    text = "card no 4111111111111112, card no 4111111111111111"
    kinds = frozenset({"card"})
    assert masked_by(text, detect=kinds) == "card no [CARD], card no [CARD]"
    assert masked_by(text, detect=kinds, confidence="validated") == "card no 4111111111111112, card no [CARD]"


@pytest.mark.parametrize(
    ("entry", "left"),
    [
        ("400-820-8888", "400 820 8888"),
        ("400-820-8888", "４００－８２０－８８８８"),
        ("4008208888", "400-820-8888"),
        ("Help@Bank.example", "help@bank.example"),
        ("/.*@bank\\.example/", "anyone@bank.example"),
    ],
)
def test_what_is_allowed_stays_readable(entry: str, left: str) -> None:
    text = f"call {left} or 212-555-0123, ann@example.com"
    masked = masked_by(text, detect=frozenset({"phone", "email"}), allow=(entry,))
    assert masked == f"call {left} or [PHONE], [EMAIL]"


def test_an_allowed_value_is_hidden_where_it_is_part_of_more() -> None:
    assert masked_by("x@bank.example.com", detect=frozenset({"email"}), allow=("x@bank.example",)) == "[EMAIL]"
    text = "https://u:pw@bank.example"
    assert masked_by(text, detect=frozenset({"secret", "email"}), allow=("pw@bank.example",)) == "[SECRET]"


def test_a_columns_value_can_be_left_alone_in_its_row_only() -> None:
    """An order number of eleven digits that looks like a mobile phone."""
    rules: dict[str, Any] = {"detect": frozenset({"phone"}), "skip": ("order_no",)}
    text = "order 13812345678, call 13987654321"
    assert masked_by(text, {"order_no": "13812345678"}, **rules) == "order 13812345678, call [PHONE]"
    assert masked_by(text, {"order_no": "13987654321"}, **rules) == "order [PHONE], call 13987654321"
    assert masked_by(text, {}, **rules) == "order [PHONE], call [PHONE]"


def test_a_users_pattern_is_a_type_of_its_own() -> None:
    rules: dict[str, Any] = {
        "detect": frozenset({"phone"}),
        "patterns": {"EMPLOYEE": r"\bE-\d{6}\b", "CASE": r"案件\d+号"},
    }
    masker = Masker(MaskingRules(**rules), KEY, "team/a").for_row({})
    text = "Ｅ－１２３４５６, E-12\u200b3456 and 案件42号, XE-1234567"
    masked = masker.mask(text)
    assert re.sub(r"_[2-9A-Z]{5,}\]", "]", masked) == "[EMPLOYEE], [EMPLOYEE] and [CASE], XE-1234567"
    assert masker.restore(masked.lower()) == text.replace("XE", "xe")


@pytest.mark.parametrize("pattern", ["(", "(?=x)a", "x*", "", "a" * 501, "((a{100}){100}){10}"])
def test_a_pattern_that_cannot_be_used_is_refused_without_being_quoted(pattern: str) -> None:
    for rules in ({"patterns": {"CASE": pattern}}, {"allow": (f"/{pattern}/",), "detect": frozenset({"ip"})}):
        if pattern == "" and "allow" in rules:
            continue  # two slashes are a value
        with pytest.raises(PrivacyError, match=r"masking: (patterns: CASE|allow): ") as caught:
            Masker(MaskingRules(**rules), KEY, "team/a")  # type: ignore[arg-type]
        assert len(pattern) < 3 or pattern not in str(caught.value)


# The leak guard


def test_the_guard_finds_what_masking_left() -> None:
    mask = row_mask()
    for leak, kind in (("ann@example.com", "email"), ("4111 1111 1111 1111", "card"), ("ANN LEE", "person")):
        with pytest.raises(PrivacyError, match=f"still holds a value of kind {kind}") as caught:
            mask.check(f"x {leak} y")
        assert leak not in str(caught.value)


def test_the_guard_passes_what_was_masked_allowed_or_left_alone() -> None:
    rules = MaskingRules(
        frozenset({"standard"}), {"name": "PERSON"}, allow=("400-820-8888",), skip=("order",), confidence="validated"
    )
    mask = Masker(rules, KEY, "team/a").for_row({"name": "PERSON", "order": "13812345678"})
    masked = mask.mask("PERSON 13812345678, 400 820 8888, a@b.example, phone 12345678")
    mask.check(masked)
    assert "12345678, 400 820 8888, [EMAIL_" in masked


# Escapes


@pytest.mark.parametrize("name", ["李雷", 'O\'Brien "Bob" Lee', "Müller Ann", "a\\b Lee", "Ann\nLee", "𠮷田"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_value_is_masked_however_often_json_escaped_it(name: str, times: int) -> None:
    """A model reads through escapes, so a name that is hidden from a search is not hidden from it."""
    rules = MaskingRules(detect=frozenset({"email"}), columns={"who": "PERSON"})
    mask = Masker(rules, b"k" * 32, "s").for_row({"who": name})
    text = json.dumps({"who": name, "mail": "bo@example.com"}).replace("@", "\\u0040")
    for _ in range(times - 1):
        text = json.dumps(text)
    with pytest.raises(PrivacyError, match="kind email, person"):
        mask.check(f"Data: {text}")
    masked = mask.mask(f"Data: {text}")
    mask.check(masked)
    assert sorted(token.partition("_")[0] for token in mask.tokens) == ["[EMAIL", "[PERSON"]
    assert mask.restore(masked) == f"Data: {text}"


@given(st.text(alphabet=st.sampled_from('\\"/u0aD8dCn{}:é𠮷Z5@. ')))
def test_offsets_lead_through_escapes(text: str) -> None:
    read = unescaped(text)
    if read is None:
        return
    ends = [read.written(index) for index in range(len(read.text) + 1)]
    assert (ends[0], ends[-1]) == (0, len(text))
    for char, start, end in zip(read.text, ends, ends[1:], strict=False):
        written = text[start:end]
        assert written == char or json.loads(f'"{written}"') == char


# Texts that come with every row are looked through once.

EVERY_ROW = [
    "Answer as a bank would.",
    "Ask Ann Lee, or call 400-820-8888.",
    "Write to help@example.com",
    "Ann\\u0020Lee is our director",
    '{"a": "\\u0041nn Lee"}',
    "安 Lee 张 伟",
    "[EMAIL_7K2QM] is a token",
    "Lee",
    "",
]


@pytest.mark.parametrize("name", ["Ann Lee", "Bo Chen", "张伟", "bank", None])
def test_an_expected_text_is_masked_as_any_other(name: str | None) -> None:
    plain, expecting = Masker(RULES, KEY, "s"), Masker(RULES, KEY, "s")
    expecting.expect(EVERY_ROW)
    for _ in range(2):
        for text in EVERY_ROW:
            assert expecting.for_row({"name": name}).masked(text) == plain.for_row({"name": name}).masked(text)


def test_a_row_that_hides_its_name_in_an_expected_text_is_masked_whatever_came_before() -> None:
    masker = Masker(RULES, KEY, "s")
    masker.expect(["Our director is Ann Lee"])
    for name, shown in (("Bo Chen", True), ("Ann Lee", False), ("Bo Chen", True), (["x", "ann lee"], False)):
        assert ("Ann" in masker.for_row({"name": name}).masked("Our director is Ann Lee")) == shown


def test_a_guard_that_objects_to_an_expected_text_objects_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowMask, "mask", lambda self, text: text)
    masker = Masker(RULES, KEY, "s")
    masker.expect(["write to help@example.com"])
    for _ in range(2):
        with pytest.raises(PrivacyError, match="still holds a value of kind email"):
            masker.for_row(ROW).masked("write to help@example.com")


def test_masking_and_guarding_in_one_is_both() -> None:
    mask = row_mask()
    assert mask.masked("Ann Lee <ann@example.com>") == row_mask().mask("Ann Lee <ann@example.com>")
