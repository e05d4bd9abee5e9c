"""One behaviour suite, both databases through it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_ai_provider.core.ledger.database import Ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a ledger with its tables, and nothing in them."""
    if request.param == "sqlite":
        made = shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "ledger.db")
        return f"sqlite:///{made}"
    url: str = request.getfixturevalue("migrated_postgres_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without tables, or of a file that is not there."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """One ledger for a module whose tests empty it themselves: making a database takes longer than most tests."""
    name = f"test_{secrets.token_hex(6)}"
    url = f"sqlite:///{tmp_path_factory.mktemp(name) / 'ledger.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").create_database(name)
    with Ledger.open(url) as opened:
        yield opened
    if request.param == "postgresql":
        request.getfixturevalue("postgres").drop_database(name)
