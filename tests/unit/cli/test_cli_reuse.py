"""``airflow ai reuse``: what is stored, and removing it by team, age and person, on either kind of store."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.cli import airflow, install

from airflow_ai_provider.core.cache import ResponseStore, Stored, open_responses
from airflow_ai_provider.core.pipeline.prepare import profile_masker
from airflow_ai_provider.core.policy import MaskingProfile
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.hooks.settings import settings_from_airflow

ADA, BOB = "ada@example.org", "bob@example.org"


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keyring = Keyring.open(folder / "ai" / "keyring.json")

    def keep(
        self, number: int, value: str, *, team: str = "support", days: int = 0, ring: Keyring | None = None
    ) -> str:
        """An answer to a row with this value; the row's token."""
        ring = ring or self.keyring
        masker = profile_masker(MaskingProfile(detect=("email",)), ring, team=team, scope=f'["team","{team}"]')
        mask = masker.for_row({})
        text, created = mask.mask(value), int(time.time()) - days * 86400 - 60
        kept = Stored(text, "small", "stop", 1, 1, 1, "r", created, 0, team, tuple(mask.tokens), mask.scope)
        asyncio.run(self._keep(number, kept, ring))
        return text

    async def _keep(self, number: int, kept: Stored, ring: Keyring) -> None:
        settings = settings_from_airflow()
        store = ResponseStore(open_responses(settings.cache_url, settings.home), ring)
        await store.keep(number.to_bytes(32, "big"), kept, ttl=86400)
        await store.close()


@pytest.fixture(params=["sqlite", "redis"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    install(tmp_path, monkeypatch)
    if request.param == "redis":
        monkeypatch.setenv("AIRFLOW__AI__CACHE_CONN_ID", "cache")
        monkeypatch.setenv("AIRFLOW_CONN_CACHE", request.getfixturevalue("empty_redis_url"))
    return Home(tmp_path)


def events(folder: Path) -> list[dict[str, Any]]:
    """What the trail says of the response store."""
    paths = sorted((folder / "ai/audit/spool").glob("main/*"))
    found = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [event for event in found if str(event.get("event.action", "")).startswith("reuse.")]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, rows, and what went to standard error."""
    capsys.readouterr()
    status = airflow("reuse", *words, "-o", "json")
    out, err = capsys.readouterr()
    return status, json.loads(out) if out.strip() else [], err


def test_stats_say_how_much_each_team_has(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("reuse", "stats") == 0
    assert "no stored answers" in capsys.readouterr().out
    for number, (team, days) in enumerate([("support", 3), ("support", 0), ("sales", 1)]):
        home.keep(number, ADA, team=team, days=days)
    status, rows, _ = said(capsys, "stats")
    assert status == 0
    assert [(row["team"], row["answers"]) for row in rows] == [("sales", "1"), ("support", "2")]
    assert rows[1]["oldest"] < rows[0]["oldest"] < rows[1]["newest"]
    assert int(rows[1]["bytes"]) > 200
    _, rows, _ = said(capsys, "stats", "--team", "sales")
    assert [row["team"] for row in rows] == ["sales"]


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    assert airflow("reuse", "stats") == 0
    assert airflow("reuse", "purge", "--team", "support") == 0
    assert not (tmp_path / "ai" / "responses.db").exists()


def test_answers_of_a_team_and_an_age_are_removed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (team, days) in enumerate([("support", 3), ("support", 0), ("sales", 3)]):
        home.keep(number, ADA, team=team, days=days)
    status, (row,), _ = said(capsys, "purge", "--team", "support", "--older-than", "2d", "--dry-run")
    assert (status, row["looked_at"], row["would_remove"]) == (0, "1", "1")
    assert events(home.folder) == [], "nothing happened"
    status, (row,), _ = said(capsys, "purge", "--team", "support", "--older-than", "48h")
    assert (status, row["removed"], row["left_unreadable"]) == (0, "1", "0")
    _, rows, _ = said(capsys, "stats")
    assert [(row["team"], row["answers"]) for row in rows] == [("sales", "1"), ("support", "1")]
    (event,) = events(home.folder)
    assert event["event.action"] == "reuse.purged"
    assert event["airflow_ai.answers"] == 1
    assert event["airflow_ai.team"] == "support"
    assert event["user.name"]
    assert "airflow_ai.subjects" not in event


def test_answers_of_a_person_are_removed_by_a_token_that_is_named(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    ada, _, carol = (home.keep(number, value) for number, value in enumerate([ADA, BOB, "carol@example.org"]))
    status, (row,), _ = said(capsys, "purge", "--token", ada, "--token", carol)
    assert (status, row["looked_at"], row["removed"]) == (0, "3", "2")
    (event,) = events(home.folder)
    assert event["airflow_ai.subjects"] == 2
    assert not any(token in json.dumps(event) for token in (ada, carol))


def test_answers_of_a_person_are_removed_by_values_in_a_file_and_on_standard_input(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, value in enumerate([ADA, BOB, "carol@example.org"]):
        home.keep(number, value)
    (home.folder / "persons.txt").write_text(f"{ADA}\n\n", encoding="utf-8")
    status, (row,), err = said(capsys, "purge", "--subjects", str(home.folder / "persons.txt"), "--team", "support")
    assert (status, row["removed"], err) == (0, "1", "")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{BOB}\r\n{ADA}\n"))
    status, (row,), err = said(capsys, "purge", "--subjects", "-")
    assert (status, row["looked_at"], row["removed"]) == (0, "2", "1")
    told = err + json.dumps(events(home.folder))
    assert not any(value in told for value in (ADA, BOB))
    assert [event["airflow_ai.subjects"] for event in events(home.folder)] == [1, 2]


def test_answers_that_cannot_be_opened_are_a_finding(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    ada = home.keep(0, ADA)
    home.keep(1, ADA, ring=Keyring.open(home.folder / "elsewhere" / "keyring.json"))
    status, (row,), err = said(capsys, "purge", "--token", ada)
    assert (status, row["removed"], row["left_unreadable"]) == (1, "1", "1")
    assert "1 answers cannot be opened" in err
    assert events(home.folder)[-1]["airflow_ai.findings"] == 1
    status, (row,), _ = said(capsys, "purge", "--token", ada, "--unreadable")
    assert (status, row["removed"], row["left_unreadable"]) == (0, "1", "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to go by"),
        (["--token", "ada@example.org"], "is no token"),
        (["--subjects", "absent.txt"], "cannot be read: No such file"),
        (["--subjects", "empty.txt"], "found none"),
        (["--subjects", "latin.txt"], "not UTF-8"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(install(tmp_path, monkeypatch))
    home.keep(0, ADA)
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"M\xfcller\n")
    status, _, err = said(capsys, "purge", *words)
    assert status == 2
    assert message in err
    assert events(tmp_path) == []


def test_a_redis_that_is_away_is_said_and_is_in_the_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.setenv("AIRFLOW__AI__CACHE_CONN_ID", "cache")
    monkeypatch.setenv("AIRFLOW_CONN_CACHE", "redis://127.0.0.1:1/0")
    status, _, err = said(capsys, "purge", "--team", "support")
    assert status == 2
    assert "response store on Redis: ConnectionError" in err
    (event,) = events(tmp_path)
    assert (event["event.outcome"], event["airflow_ai.answers"]) == ("failure", 0)
