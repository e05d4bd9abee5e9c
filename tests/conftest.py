"""Fixtures that every test may ask for. Nothing starts, and nothing heavy is imported, until one is asked for."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from support.opensearch import OpenSearchServer, search_server
from support.postgres import PostgresServer, postgres_server
from support.redis_server import RedisServer, redis_server
from support.s3 import S3Store, s3_store
from support.server import MissingService
from support.storage import Place
from support.temporary import use_own_folder

use_own_folder()
if "airflow" not in sys.modules:
    # Airflow reads its home when it is first imported; a test must never write to the user's own.
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"

# The same examples every time, and no test fails for the machine being slow.
settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole systems before units: begun last, a long file would keep one process busy while the others have ended."""
    items.sort(key=lambda item: "unit" in item.path.parts)


if TYPE_CHECKING:
    from airflow_ai_provider.testing.vendor import VendorDouble


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server for the whole run. A test that stops it starts it again.

    It does not wait for the disk, unless ``AI_TEST_FSYNC=on``: a power cut is the only crash in which that loses
    anything, and no test can make one. A test of crashes has a server of its own all the same, which does wait.
    """
    try:
        with postgres_server(fsync=os.environ.get("AI_TEST_FSYNC") == "on") as server:
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
def migrated_database(postgres: PostgresServer) -> str:
    """Name of a database with the ledger's tables, to be copied: a migration takes longer than most tests."""
    from airflow_ai_provider.core.ledger.database import Ledger

    Ledger.open(postgres.create_database("migrated")).close()
    return "migrated"


@pytest.fixture
def migrated_postgres_url(postgres: PostgresServer, migrated_database: str) -> Iterator[str]:
    """SQLAlchemy URL of a database of this test's own with the ledger's tables, and nothing in them."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres.create_database(name, template=migrated_database)
    postgres.start()
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a SQLite file."""
    from airflow_ai_provider.core.ledger.database import Ledger

    path = tmp_path_factory.mktemp("migrated") / "ledger.db"
    Ledger.open(f"sqlite:///{path}").close()
    return path


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


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """Storage options of an S3 server on this machine with the bucket ``rows``."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket="rows")
    yield {"key": "test", "secret": "test", "endpoint_url": endpoint}
    server.stop()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where rows may live: a local folder, and S3."""
    if request.param == "local":
        from fsspec.implementations.local import LocalFileSystem

        return Place(str(tmp_path), LocalFileSystem())
    import s3fs

    options = request.getfixturevalue("s3_options")
    return Place(f"s3://rows/{uuid.uuid4().hex}", s3fs.S3FileSystem(**options), options)
