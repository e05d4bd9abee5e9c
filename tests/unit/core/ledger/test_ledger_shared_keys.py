"""Hosts on one ledger that do not share their keys are told so, whatever happens to keys meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.installation_checks import (
    GRACE,
    KEYRING,
    HostKeys,
    adopt_keys,
    check_keys,
    current_key,
    registered_keys,
)
from airflow_ai_provider.core.ledger.schema import ai_keys
from airflow_ai_provider.errors import KeyringError


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = request.getfixturevalue("migrated_postgres_url") if request.param == "postgresql" else None
    with open_ledger(url, tmp_path) as opened:
        yield opened


def keys(*ids: str, active: str | None = None, secret: str = "") -> HostKeys:
    """A keyring whose newest key writes, unless it is said which."""
    return HostKeys(KEYRING, {name: f"print-{name}{secret}" for name in ids}, active or ids[-1], "Do this.")


def later(ledger: Ledger, by: timedelta = 2 * GRACE) -> None:
    """Let time pass."""
    with ledger.write() as conn:
        conn.execute(sa.update(ai_keys).values(registered_at=ai_keys.c.registered_at))
        for row in conn.execute(sa.select(ai_keys)).all():
            mine = sa.update(ai_keys).where(ai_keys.c.purpose == row.purpose, ai_keys.c.key_id == row.key_id)
            if row.active_since:
                conn.execute(mine.values(active_since=row.active_since - by))


def current(ledger: Ledger) -> str:
    found = current_key(registered_keys(ledger, KEYRING))
    assert found is not None
    return found.key_id


def test_the_first_host_registers_and_its_like_are_welcome(ledger: Ledger) -> None:
    for _ in range(3):
        check_keys(ledger, keys("k1"))
    (key,) = registered_keys(ledger, KEYRING)
    assert (key.key_id, key.fingerprint, bool(key.host)) == ("k1", "print-k1", True)


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        (keys("k1"), keys("k9"), "key k1, which host"),
        (keys("k1"), keys("k1", secret="other"), "key k1 is another key here"),
        (keys("k1", "k2"), keys("k1", "k3"), "key k2, which host"),
        (keys("k1", "k2"), keys("k1", "k0"), "key k2, which host"),
        (keys("k1", "k2"), keys("k2", "k1", secret="x", active="k2"), "is another key here"),
    ],
)
def test_another_keyring_is_refused_and_changes_nothing(
    ledger: Ledger, there: HostKeys, here: HostKeys, told: str
) -> None:
    check_keys(ledger, there)
    before = registered_keys(ledger, KEYRING)
    for _ in range(2):
        with pytest.raises(KeyringError, match=rf"{told}.*paid twice.*Do this\."):
            check_keys(ledger, here)
    assert registered_keys(ledger, KEYRING) == before
    check_keys(ledger, there)


def test_a_rotation_reaches_the_hosts_one_after_the_other(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    check_keys(ledger, keys("k1"))
    later(ledger)
    check_keys(ledger, keys("k1", "k2"))
    assert current(ledger) == "k2"
    with caplog.at_level(logging.WARNING):
        check_keys(ledger, keys("k1"))
    assert "k2" in caplog.text
    assert current(ledger) == "k2"
    later(ledger)
    with pytest.raises(KeyringError, match="key k2, which host"):
        check_keys(ledger, keys("k1"))
    check_keys(ledger, keys("k1", "k2"))


@pytest.mark.parametrize(
    "fine",
    [
        keys("k1", "k2"),
        keys("k2"),
        keys("k0", "k1", "k2"),
        keys("k1", "k2", "k3"),
    ],
)
def test_who_has_the_key_that_is_written_with_may_have_more_or_less(ledger: Ledger, fine: HostKeys) -> None:
    check_keys(ledger, keys("k1", "k2"))
    later(ledger)
    check_keys(ledger, fine)
    check_keys(ledger, fine)
    assert current(ledger) == (fine.active if fine.active == "k3" else "k2")


def test_the_key_that_a_host_began_to_write_with_last_is_the_one_to_have(ledger: Ledger) -> None:
    """Both keys were made known before one of them was used."""
    check_keys(ledger, keys("k1", "k2", active="k1"))
    check_keys(ledger, keys("k1"))
    check_keys(ledger, keys("k1", "k2", active="k2"))
    later(ledger)
    with pytest.raises(KeyringError, match="key k2, which host"):
        check_keys(ledger, keys("k1"))
    check_keys(ledger, keys("k1", "k2", active="k1"))
    assert current(ledger) == "k2"


def test_a_ledger_restored_from_before_a_rotation_learns_the_key_again(ledger: Ledger) -> None:
    check_keys(ledger, keys("k1"))
    check_keys(ledger, keys("k1", "k2"))
    with ledger.write() as conn:
        conn.execute(sa.delete(ai_keys).where(ai_keys.c.key_id == "k2"))
    check_keys(ledger, keys("k1", "k2"))
    assert current(ledger) == "k2"


def test_a_keyring_restored_from_before_a_rotation_can_be_adopted(ledger: Ledger) -> None:
    check_keys(ledger, keys("k1", "k2"))
    later(ledger)
    with pytest.raises(KeyringError):
        check_keys(ledger, keys("k1"))
    adopt_keys(ledger, keys("k1"))
    check_keys(ledger, keys("k1"))
    with pytest.raises(KeyringError):
        check_keys(ledger, keys("k9"))


def test_purposes_and_trails_are_apart(ledger: Ledger) -> None:
    check_keys(ledger, keys("k1"))
    check_keys(ledger, HostKeys("signing main", {"a": "a"}, "a", ""))
    check_keys(ledger, HostKeys("signing other", {"b": "b"}, "b", ""))
    with pytest.raises(KeyringError, match="does not verify"):
        check_keys(ledger, HostKeys("signing main", {"b": "b"}, "b", ""))


def test_who_only_reads_registers_nothing(ledger: Ledger) -> None:
    check_keys(ledger, keys("k1"), register=False)
    assert registered_keys(ledger, KEYRING) == []


def test_of_hosts_that_start_at_once_with_different_keyrings_one_is_right(ledger: Ledger) -> None:
    refused: list[str] = []
    together = threading.Barrier(6)

    def start(name: str) -> None:
        together.wait()
        try:
            check_keys(ledger, keys(name))
        except KeyringError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(f"k{number % 3}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registered_keys(ledger, KEYRING)) == 1
    assert len(refused) == 4


def test_a_clock_that_is_behind_does_not_undo_a_rotation(ledger: Ledger) -> None:
    check_keys(ledger, keys("k1"))
    with ledger.write() as conn:
        conn.execute(sa.update(ai_keys).values(active_since=datetime.now(UTC) + timedelta(minutes=10)))
    check_keys(ledger, keys("k1", "k2"))
    assert current(ledger) == "k2"
