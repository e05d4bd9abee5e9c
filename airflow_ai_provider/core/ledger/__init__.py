"""Money: holds, attempts, settled requests and reports, on SQLite or PostgreSQL.

Two invariants that must not be relaxed: at every instant ``spent + held ≤ limit`` of every budget, and the vendor's
invoice is never above what the ledger says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_ai_provider.core.ledger.database import Ledger


def open_ledger(url: str | None, home: Path) -> Ledger:
    """Open the ledger at an SQLAlchemy ``url``, or SQLite in ``home``; its schema is brought up to date.

    Raises ``LedgerUnavailable`` where the database cannot be reached.
    """
    from airflow_ai_provider.core.ledger.database import Ledger

    return Ledger.open(url or f"sqlite:///{home / 'ledger.db'}")
