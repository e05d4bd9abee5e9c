"""Parts that the integration tests put between real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.map_jobs import PRICE

from airflow_ai_provider.testing.vendor import VendorProcess


@pytest.fixture
def paid_vendor(tmp_path: Path) -> Iterator[VendorProcess]:
    """A vendor in a process of its own, with the policy's prices; its invoice and its requests are in files, too."""
    with VendorProcess(
        prices={"*": PRICE}, invoice_file=tmp_path / "invoice.jsonl", requests_file=tmp_path / "requests.jsonl"
    ) as double:
        yield double
