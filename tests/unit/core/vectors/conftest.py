"""One real Milvus Lite for all tests of this folder; each test has its own collection."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from airflow_ai_provider.core.vectors.store import MilvusStore

_NUMBERS = count()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    folder: Path = tmp_path_factory.mktemp("vectors")
    with MilvusStore(folder) as opened:
        yield opened


@pytest.fixture
def collection() -> str:
    return f"kb_{next(_NUMBERS)}"
