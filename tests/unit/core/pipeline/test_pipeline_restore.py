"""Tokens on the path: who shares them, what an answer may make of them, and what a rotation of keys does to them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, deployment, policy

from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.testing.vendor import VendorDouble

TOKEN = re.compile(r"\[[A-Z_]+_[0-9A-Z]{5,}\]")
PROFILE = {"standard": {"detect": ["email"], "columns": {"name": "PERSON"}}}
INVENTED = {"type": "object", "properties": {"to": {"const": "[EMAIL_22A22]"}}}
"""The double answers with a constant that a schema asks for: here, a token that no row has."""


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> House:
    made = House(tmp_path, vendor)
    write(made)
    return made


def write(house: House, **changes: Any) -> None:
    house.write(policy(masking="standard", profiles=PROFILE, **changes))


def sent(vendor: VendorDouble) -> list[str]:
    return [request.body["messages"][-1]["content"] for request in vendor.requests()]


@pytest.mark.parametrize(("scope", "distinct"), [("off", 2), ("run", 1), ("team", 1)])
def test_rows_share_tokens_only_where_they_share_answers(
    house: House, vendor: VendorDouble, scope: str, distinct: int
) -> None:
    write(house, reuse={"scope": scope})
    rows = house.run(["one ann@example.com", "two ann@example.com"]).rows
    assert len({TOKEN.findall(prompt)[0] for prompt in sent(vendor)}) == distinct
    assert all("ann@example.com" in row["answer"] for row in rows)


def test_a_retry_repeats_the_tokens_of_a_row_that_shares_nothing(house: House, vendor: VendorDouble) -> None:
    write(house, reuse={"scope": "off"})
    first = house.run(["ann@example.com"], sink=str(house.folder / "a")).rows
    again = house.run(["ann@example.com"], sink=str(house.folder / "b")).rows
    assert vendor.stats().requests == 1
    assert again[0]["reused"]
    assert first[0]["answer"] == again[0]["answer"]


def test_a_token_that_no_row_has_is_rejected_after_one_more_tier(house: House, vendor: VendorDouble) -> None:
    write(
        house,
        deployments={"small": deployment(), "large": deployment(params={"temperature": 1})},
        tiers={"simple": ["small"], "complex": ["large"]},
        escalate={"on": ["restore"], "to": "complex"},
    )
    (row,) = house.run(["write to ann@example.com"], output_schema=INVENTED).rows
    assert (row["status"], row["tier"]) == ("rejected", "complex")
    assert row["error"] == "restore: tokens that are not the row's: 1, that cannot be read: 0"
    assert json.loads(row["answer"]) == {"to": "[EMAIL_22A22]"}
    assert vendor.stats().requests == 2


def test_without_the_check_such_an_answer_is_given_back(house: House) -> None:
    (row,) = house.run(["write to ann@example.com"], output_schema=INVENTED).rows
    assert row["status"] == "ok"


def test_an_answer_that_repeats_its_own_tokens_passes(house: House) -> None:
    write(house, escalate={"on": ["restore"]})
    rows = house.run(["write to ann@example.com", "what is [EMAIL_7K2QM]?", "nothing personal"]).rows
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert "ann@example.com" in rows[0]["answer"]
    assert "[EMAIL_7K2QM]" in rows[1]["answer"]


def test_a_value_with_quotes_leaves_an_answer_json(house: House) -> None:
    schema = {"type": "object", "properties": {"reply": {"type": "string"}, "id": {"const": 12345678901234567890}}}
    (row,) = house.run([{"text": "x", "name": 'Ann "Q\\" Lee'}], prompt="{{ name }}", output_schema=schema).rows
    assert 'Ann "Q\\" Lee' in json.loads(row["answer"])["reply"]
    assert "12345678901234567890" in row["answer"], "digits beyond a float's are not lost"


def test_names_in_a_json_prompt_are_masked(house: House, vendor: VendorDouble) -> None:
    """Escapes beyond ASCII and for HTML would hide them."""
    house.run(
        [{"text": "x", "name": "张伟"}, {"text": "y", "name": "Pat O'Neil"}], prompt="{{ [name, text] | tojson }}"
    )
    for prompt in sent(vendor):
        assert TOKEN.match(json.loads(prompt)[0]), "the name is not masked"


def test_after_a_rotation_answers_under_old_tokens_are_not_found_and_new_ones_come_back(
    house: House, vendor: VendorDouble
) -> None:
    """A stored answer holds old tokens, and so does its key: it is a miss, never half-restored text."""
    write(house, reuse={"scope": "team"})
    (before,) = house.run(["write to ann@example.com"], run_id="run-1").rows
    Keyring.rotate(house.settings.home / "keyring.json")
    (after,) = house.run(["write to ann@example.com"], run_id="run-2").rows
    (again,) = house.run(["write to ann@example.com"], run_id="run-3").rows
    assert (before["reused"], after["reused"], again["reused"]) == (False, False, True)
    assert before["answer"] == after["answer"] == again["answer"]
    assert "ann@example.com" in after["answer"]
    old, new = sent(vendor)
    assert TOKEN.findall(old) != TOKEN.findall(new)


def test_a_retry_after_a_rotation_keeps_finished_parts_and_restores_the_others(
    house: House, vendor: VendorDouble
) -> None:
    """The map of tokens is computed from the row with the key of the day: no try needs the tokens of another."""
    write(house, limit_usd="0")
    rows = ["write to ann@example.com", "write to bo@example.com"]
    assert [row["status"] for row in house.run(rows).rows] == ["over_budget"] * 2
    write(house)
    Keyring.rotate(house.settings.home / "keyring.json")
    assert ["example.com" in row["answer"] for row in house.run(rows).rows] == [True, True]
    Keyring.rotate(house.settings.home / "keyring.json")
    assert ["example.com" in row["answer"] for row in house.run(rows).rows] == [True, True]
    assert vendor.stats().requests == 2
