"""A ledger on both databases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_ai_provider.core.ledger.database import Ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        made = shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "ledger.db")
        url = f"sqlite:///{made}"
    else:
        url = request.getfixturevalue("migrated_postgres_url")
    with Ledger.open(url) as opened:
        yield opened
