"""The folder archive: written once, whole or absent."""

from __future__ import annotations

import gzip
import stat
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from airflow_ai_provider.core.audit.sinks.archive import (
    FolderArchive,
    compress,
    manifest_object,
    manifest_sequence,
)
from airflow_ai_provider.errors import StoreUnavailable


def test_put_get_list(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path / "archive")
    assert list(archive.list("segments/")) == []
    assert archive.put("segments/2025/03/01/b.gz", b"b")
    assert archive.put("segments/2025/03/01/a.gz", b"a")
    assert archive.put("manifests/1.json", b"m")
    assert list(archive.list("segments/")) == ["segments/2025/03/01/a.gz", "segments/2025/03/01/b.gz"]
    assert archive.get("segments/2025/03/01/a.gz") == b"a"
    assert archive.sha256("manifests/1.json") == sha256(b"m").hexdigest()


def test_a_name_is_written_once(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path)
    assert archive.put("a", b"first")
    assert not archive.put("a", b"second")
    assert archive.get("a") == b"first"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o440


def test_of_racing_puts_one_wins_whole(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda n: archive.put("deep/er/a", bytes([n]) * 10_000), range(8)))
    assert wins.count(True) == 1
    assert archive.get("deep/er/a") == bytes([wins.index(True)]) * 10_000
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["a"]


def test_absent_and_unreachable_are_told_apart(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path / "archive")
    with pytest.raises(FileNotFoundError, match="segments/x"):
        archive.get("segments/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        FolderArchive(tmp_path / "file").put("a/b", b"")
    with pytest.raises(StoreUnavailable, match="cannot be listed"):
        list(FolderArchive(tmp_path / "file").list("segments/"))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        FolderArchive(tmp_path).put(name, b"")


def test_manifest_names() -> None:
    assert manifest_object(7) == "manifests/000000000007.json"
    assert manifest_sequence("manifests/000000000007.json") == 7
    for name in ("manifests/7.json", "manifests/000000000000.json", "manifests/x.json", "manifests/00000000000٧.json"):
        assert manifest_sequence(name) is None


def test_compression_is_plain_gzip_and_repeatable() -> None:
    data = b"line\n" * 1000
    assert compress(data) == compress(data)
    assert gzip.decompress(compress(data)) == data
