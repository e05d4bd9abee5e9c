"""Answers get their values back, whatever a model did to the tokens; what cannot come back is reported."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from airflow_ai_provider.core.privacy.detectors.detector import KINDS
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules, RowMask
from airflow_ai_provider.core.privacy.masking.tokens import Restorer, TokenReport
from airflow_ai_provider.testing.mangling import MANGLINGS

RULES = MaskingRules(frozenset(KINDS), {"name": "PERSON"})
MASKER = Masker(RULES, b"k" * 32, "team/a")


def masked(text: str, name: str = "Ann Lee") -> tuple[RowMask, list[str]]:
    mask = MASKER.for_row({"name": name})
    mask.mask(text)
    return mask, list(mask.tokens)


def values_of_rows(count: int, seed: int) -> list[list[str]]:
    """1 to 8 values a row, of several types, no two rows with a value in common."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        makers = [
            lambda n=number, i=0: f"user{n}.{rng.randrange(99)}@example.com",
            lambda n=number: f"138{n:05d}{rng.randrange(1000):03d}",
            lambda n=number: f"10.{n // 65536}.{n // 256 % 256}.{n % 256}",
            lambda n=number: f"ann{n}@example.org",
            lambda n=number: f"139{n:05d}{rng.randrange(1000):03d}",
            lambda n=number: f"bo{n}@example.net",
            lambda n=number: f"+44 7700 9{n:05d}",
        ]
        chosen = rng.sample(makers, rng.randint(0, 7))
        rows.append([f"Customer No{number}x", *(make() for make in chosen)])
    return rows


@pytest.mark.parametrize("kind", [None, *MANGLINGS])
def test_values_come_back_from_every_form_but_one_and_never_a_wrong_one(kind: str | None) -> None:
    """A sample of what ``benchmarks/bench_restore.py`` does with 10,000 rows."""
    assert len(MANGLINGS) == 17
    rows = values_of_rows(40, seed=11)
    everything = {value for row in rows for value in row}
    back = 0
    for row in rows:
        mask = MASKER.for_row({"name": row[0]})
        prompt = mask.mask(" and ".join(row))
        tokens = [token for value in row for token, text in mask.tokens.items() if text == value]
        assert len(tokens) == len(row), prompt
        mangle = MANGLINGS[kind] if kind else str
        restored = mask.restore_value("; ".join(f"value: {mangle(token)}." for token in tokens))
        wrong = [value for value in everything - set(row) if value in restored]
        assert not wrong
        back += sum(value in restored for value in row)
    total = sum(map(len, rows))
    assert back == (0 if kind == "type lost" else total)


def test_tokens_of_other_types_are_not_restored_by_their_code() -> None:
    mask, (token, *_) = masked("ann@example.com")
    assert mask.restore(token.replace("EMAIL", "PHONE")) == token.replace("EMAIL", "PHONE")


def test_a_report_names_what_is_missing_repeated_and_unknown() -> None:
    mask, (first, second, third) = masked("ann@example.com 13812345678 Ann Lee")
    report = mask.report(f"{first} {first.lower()} {second} [EMAIL_22A22] [CITY_7K2QM]")
    assert report == TokenReport(
        missing=(third,), unknown=("[EMAIL_22A22]", "[CITY_7K2QM]"), repeated={first: 2}, mangled=()
    )
    assert report.problem == "tokens that are not the row's: 2, that cannot be read: 0"


def test_an_answer_need_not_repeat_its_tokens() -> None:
    mask, tokens = masked("ann@example.com 13812345678")
    assert mask.report("Thank you.").missing == tuple(tokens)
    assert mask.report("Thank you.").problem is None
    assert mask.report(" ".join(tokens)) == TokenReport()


@pytest.mark.parametrize("form", ["[{code}]", "your e-mail {code}.", "[邮箱_{code}]", "PHONE {code}", "电话{code}的"])
def test_a_code_without_its_type_is_reported_as_mangled(form: str) -> None:
    """The customer would read the code: the answer cannot be given back."""
    mask, (token,) = masked("ann@example.com")
    report = mask.report(form.format(code=token[-6:-1]))
    assert report.mangled == report.missing == (token,)
    assert report.problem


def test_a_code_inside_a_longer_word_is_not_one() -> None:
    mask, (token,) = masked("ann@example.com")
    assert mask.report(f"order A{token[-6:-1]}9").problem is None


def test_input_that_reads_as_a_token_is_no_unknown_token() -> None:
    """It was masked itself, so the answer repeats a token of its row."""
    mask = MASKER.for_row({"name": "Bo"})
    answer = mask.mask("what does [EMAIL_7K2QM] mean? ann@example.com")
    assert mask.report(answer).problem is None
    assert mask.restore_value(answer) == "what does [EMAIL_7K2QM] mean? ann@example.com"


def test_tokens_minted_elsewhere_are_restored_from_their_map() -> None:
    mask, _ = masked("ann@example.com, Ann Lee")
    number = mask.mask_value(13812345678)
    elsewhere = Restorer.of(MASKER.entities, mask.tokens, mask.originals)
    for token, value in mask.tokens.items():
        assert elsewhere.restore(token.lower()) == value
    assert elsewhere.originals == {number: 13812345678}
    assert elsewhere.report("[CITY_7K2QM]").unknown == ("[CITY_7K2QM]",)


_MINT = """
import sys
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules
rules = MaskingRules(frozenset(["email", "phone", "card", "ip"]), {"name": "PERSON", "alias": "PERSON", "note": "ID"})
row = {"name": "Ann Lee", "alias": ["Annie", {"x": "An"}], "note": 77}
mask = Masker(rules, b"k" * 32, "team/a").for_row(row, *sys.argv[1:])
text = "Annie, 77, An of Ann Lee ann@example.com"
print(mask.mask_value({"t": text, "n": [13812345678, '{"a": "ann@example.com"}']}))
"""


@pytest.mark.parametrize("record", [[], ["r1"]])
def test_tokens_are_the_same_in_every_process(record: list[str]) -> None:
    """Sets and dicts are in another order there; retries, shards and other hosts repeat each other's tokens."""
    said = {
        subprocess.run(
            [sys.executable, "-c", _MINT, *record],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    assert said.pop().count("[PERSON_") == 3
