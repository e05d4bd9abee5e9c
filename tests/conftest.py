"""Fixtures that every test may ask for. Nothing starts, and nothing heavy is imported, until one is asked for."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from services import MissingService, PostgresServer, RedisServer, postgres_server, redis_server
from services_s3 import S3Store, s3_store
from services_search import OpenSearchServer, search_server

if "airflow" not in sys.modules:
    # Airflow reads its home when it is first imported; a test must never write to the user's own.
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"

# The same examples every time, and no test fails for the machine being slow.
settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")

if TYPE_CHECKING:
    from airflow_ai_provider.testing.vendor import VendorDouble


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server for the whole run. A test that stops it starts it again."""
    try:
        with postgres_server() as server:
            yield server
    except MissingService as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL (psycopg 3) of an empty database of this test's own."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres.create_database(name)
    postgres.start()
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def redis_service() -> Iterator[RedisServer]:
    """A real Redis server for the whole run. A test that stops it starts it again."""
    try:
        with redis_server() as server:
            yield server
    except MissingService as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="session")
def redis_url(redis_service: RedisServer) -> str:
    """URL of the run's Redis server; what other tests wrote is still there."""
    return redis_service.url


@pytest.fixture
def empty_redis_url(redis_service: RedisServer) -> str:
    """URL of the run's Redis server, emptied for this test."""
    redis_service.start()
    redis_service.flush()
    return redis_service.url


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Store]:
    """An S3 for the whole run: Ceph where it is installed, moto elsewhere. Make a bucket of your own in it."""
    with s3_store() as store:
        yield store


@pytest.fixture(scope="session")
def opensearch() -> Iterator[OpenSearchServer]:
    """A real OpenSearch for the whole run; skips where there is no JDK, no Maven, or nothing to fetch it from."""
    try:
        with search_server() as server:
            yield server
    except MissingService as missing:
        pytest.skip(str(missing))


@pytest.fixture
def vendor() -> Iterator[VendorDouble]:
    """A fresh vendor on a loopback port, in a thread of this process; it behaves until told otherwise."""
    from airflow_ai_provider.testing.vendor import VendorDouble

    with VendorDouble() as double:
        yield double
