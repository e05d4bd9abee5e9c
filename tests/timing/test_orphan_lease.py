"""How soon a task notices that its supervisor is gone; on an idle machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from support.map_jobs import PRICE
from test_orphan import stop_an_orphan

from airflow_ai_provider.core.cache.store import OWNER_SECONDS
from airflow_ai_provider.testing.vendor import VendorProcess


@pytest.mark.parametrize("mode", ["supervised", "sudo"])
def test_an_orphans_last_call_leaves_within_the_time_for_which_its_leases_outlive_it(tmp_path: Path, mode: str) -> None:
    with VendorProcess(prices={"*": PRICE}, invoice_file=tmp_path / "invoice.jsonl") as vendor:
        assert stop_an_orphan(tmp_path, vendor, mode) <= OWNER_SECONDS
