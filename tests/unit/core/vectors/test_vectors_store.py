"""Opening and closing Milvus."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from airflow_ai_provider.core.vectors.documents import parse_document
from airflow_ai_provider.core.vectors.search import search
from airflow_ai_provider.core.vectors.store import MilvusStore
from airflow_ai_provider.core.vectors.sync import sync
from airflow_ai_provider.errors import PolicyError, StoreUnavailable

CHILD = """
import os, sys
from airflow_ai_provider.errors import StoreUnavailable
from airflow_ai_provider.core.vectors.documents import parse_document
from airflow_ai_provider.core.vectors.store import MilvusStore
from airflow_ai_provider.core.vectors.sync import sync

folder = sys.argv[1]
try:
    MilvusStore(folder, wait_seconds=0.1).__enter__()
except StoreUnavailable as refused:
    print(refused, flush=True)
sys.stdin.readline()
with MilvusStore(folder, wait_seconds=10) as store:
    documents = [parse_document(f"{n}.md", f"# Doc {n}\\n\\nanswer{n}".encode()) for n in range(5)]
    store.flush = lambda collection: os._exit(9)
    sync(documents, store, "kb")
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second process is told who is in its way, gets its turn on release, and its sudden death loses nothing."""
    with MilvusStore(tmp_path) as store:
        sync([parse_document("first.md", b"first text")], store, "kb")
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        refusal = child.stdout.readline()
    assert str(tmp_path / "milvus.db") in refusal
    assert "another process has it open" in refusal
    assert "milvus-lite server" in refusal
    child.communicate("go\n", timeout=60)
    assert child.returncode == 9
    with MilvusStore(tmp_path) as store:
        (hits,) = search(store, "kb", ["answer3"])
        assert [hit.doc_id for hit in hits] == ["3.md"]


def test_stores_of_one_process_share_a_folder(tmp_path: Path) -> None:
    """The folder is let go with the last of them, and can be opened again."""
    with MilvusStore(tmp_path / "deep" / "x.db") as first:
        with MilvusStore(f"file://{tmp_path}/deep/x.db") as second:
            sync([parse_document("a.md", b"apples")], second, "kb")
        assert len(search(first, "kb", ["apples"])[0]) == 1
    with MilvusStore(tmp_path / "deep" / "x.db") as again:
        assert len(search(again, "kb", ["apples"])[0]) == 1


def test_threads_open_and_close_one_folder(tmp_path: Path) -> None:
    """Whatever the order, each finds it open."""
    found: list[bool] = []

    def use() -> None:
        for _ in range(3):
            with MilvusStore(tmp_path) as store:
                found.append(store.has_collection("kb"))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [False] * 12


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    """Milvus Lite 2 kept a file where version 3 has a folder."""
    (tmp_path / "old.db").write_bytes(b"SQLite format 3")
    with pytest.raises(PolicyError, match=r"old\.db.*Milvus Lite 2"), MilvusStore(tmp_path / "old.db"):
        pass


def test_a_server_that_is_not_there_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-out is ours to wait for."""
    monkeypatch.setattr("airflow_ai_provider.core.vectors.store.CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:9") as caught:
        MilvusStore("http://root:hunter2@127.0.0.1:9").__enter__()
    assert "hunter2" not in str(caught.value)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the line to run."""
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(PolicyError, match=r"pip install 'airflow-ai-provider\[milvus\]'"):
        MilvusStore(tmp_path).__enter__()


def test_a_store_url_of_another_kind_is_refused() -> None:
    """What may stand there is said."""
    with pytest.raises(PolicyError, match=r"s3://.*local path"):
        MilvusStore("s3://bucket/x")


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a/b", "../x", "知识库", "x" * 256])
def test_collection_names_are_checked_before_milvus_sees_them(store: MilvusStore, name: str) -> None:
    """Milvus Lite would take some of them, a server none."""
    with pytest.raises(PolicyError, match="name Milvus takes"):
        store.has_collection(name)


def test_a_dropped_collection_can_be_made_again(store: MilvusStore, collection: str) -> None:
    """Dropping what is not there is no error."""
    documents = [parse_document("a.md", b"apples")]
    store.drop_collection(collection)
    for _ in range(2):
        assert sync(documents, store, collection).added == 1
        assert len(search(store, collection, ["apples"])[0]) == 1
        store.drop_collection(collection)
        assert not store.has_collection(collection)


def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    """Rather than fail with a None."""
    with pytest.raises(StoreUnavailable, match="not open"):
        MilvusStore(tmp_path).has_collection("kb")


def test_the_package_imports_nothing_heavy() -> None:
    """Milvus is imported when a store is opened."""
    code = (
        "import sys, airflow_ai_provider.core.vectors.search, airflow_ai_provider.core.vectors.sync;"
        "print({'pymilvus', 'milvus_lite', 'pandas', 'grpc', 'yaml', 'fsspec', 'airflow'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
