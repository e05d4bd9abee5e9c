"""Files appear whole or not at all, and storage errors become ours."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from support.storage import Place

from airflow_ai_provider.core.rows.filesystem import open_atomic, resolve, shown, translated, write_atomic
from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.errors import AIProviderError, SinkError, SourceError, StoreUnavailable


@pytest.fixture(params=["place", "memory"])
def anywhere(request: pytest.FixtureRequest, place: Place) -> Place:
    if request.param == "place":
        return place
    filesystem, _ = resolve("memory://rows/x")
    return Place("memory://rows" + str(id(request)), filesystem)


def test_a_file_is_there_whole_when_the_block_ends(anywhere: Place) -> None:
    filesystem, path = resolve(anywhere.put("out/a.bin", b"old").replace("a.bin", "b.bin"), anywhere.options)
    with open_atomic(filesystem, path) as file:
        file.write(b"x" * 100_000)
        assert anywhere.get("out/a.bin") == b"old"
        assert "b.bin" not in anywhere.names("out")
    assert anywhere.get("out/b.bin") == b"x" * 100_000
    assert anywhere.names("out") == ["a.bin", "b.bin"]


def test_a_file_is_as_it_was_when_the_block_fails(anywhere: Place) -> None:
    filesystem, path = resolve(anywhere.put("out/a.bin", b"old"), anywhere.options)

    def fail_half_way() -> None:
        with open_atomic(filesystem, path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert anywhere.get("out/a.bin") == b"old"
    assert anywhere.names("out") == ["a.bin"]


def test_a_small_file_is_replaced(anywhere: Place) -> None:
    filesystem, path = resolve(anywhere.put("out/a.bin", b"old"), anywhere.options)
    write_atomic(filesystem, path, b"new")
    assert anywhere.get("out/a.bin") == b"new"


def test_a_local_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def replace(source: str, target: str) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    filesystem, path = resolve(str(tmp_path / "a.bin"))
    write_atomic(filesystem, path, b"x")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (FileNotFoundError(2, "x"), SinkError, "does not exist"),
        (PermissionError(13, "x"), SinkError, "access denied; check the credentials"),
        (OSError(errno.ENOSPC, "x"), SinkError, "No space left"),
        (OSError(errno.EBUSY, "x"), StoreUnavailable, "busy; try again"),
        (ConnectionResetError(), StoreUnavailable, "does not answer"),
        (TimeoutError(), StoreUnavailable, "does not answer"),
        (ImportError("s3fs"), SinkError, r"pip install 'airflow-ai-provider\[amazon\]'"),
    ],
)
def test_a_storage_error_has_its_place_and_remedy(
    raised: Exception, expected: type[AIProviderError], message: str
) -> None:
    with pytest.raises(expected, match=message) as caught, translated("s3://user:secret@bucket/a", SinkError):
        raise raised
    assert str(caught.value).startswith("s3://***@bucket/a: ")


def test_our_own_errors_pass_through() -> None:
    with pytest.raises(SourceError, match=r"^as it is$"), translated("x", SinkError):
        raise SourceError("as it is")


def test_a_server_that_is_not_there_may_be_there_later() -> None:
    options = {
        "key": "test",
        "secret": "test",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"connect_timeout": 1, "retries": {"max_attempts": 0}},
    }
    filesystem, path = resolve("s3://rows/x.csv", options)
    filesystem.retries = 1
    with pytest.raises(StoreUnavailable), translated("s3://rows/x.csv", SourceError):
        filesystem.cat_file(path)


def test_a_web_server_that_is_not_there_may_be_there_later() -> None:
    with pytest.raises(StoreUnavailable):
        open_source("http://127.0.0.1:9/in.csv")


@pytest.mark.parametrize("uri", ["", "nosuch://bucket/x", "s3://", "zip://a::s3://b/c", "memory://"])
def test_a_uri_that_leads_nowhere_is_refused(uri: str) -> None:
    with pytest.raises(SourceError):
        resolve(uri)


def test_user_and_password_are_not_shown() -> None:
    assert shown("https://me:secret@host/a.csv") == "https://***@host/a.csv"
