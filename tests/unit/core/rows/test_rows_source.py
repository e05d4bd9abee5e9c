"""Which source a URI opens, over a local folder and over S3 alike."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.storage import Place

from airflow_ai_provider.core.rows.source import Source, open_source
from airflow_ai_provider.errors import SourceError


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=7)
    return out.getvalue()


CONTENT = {
    "in.csv": b"id,text\n" + b"".join(b"%d,t%d\n" % (n, n) for n in range(50)),
    "in.jsonl": b"".join(b'{"id": "%d", "text": "t%d"}\n' % (n, n) for n in range(50)),
    "in.parquet": parquet(pa.table({"id": [str(n) for n in range(50)], "text": [f"t{n}" for n in range(50)]})),
}


def opened(place: Place, name: str) -> Source:
    return open_source(place.uri(name), storage_options=place.options)


def ids(source: Source, size: int = 100) -> list[str]:
    return [value for batch in source.batches(size) for value in batch["id"].to_pylist()]


@pytest.mark.parametrize("name", CONTENT)
def test_a_file_is_read_by_its_suffix_in_exact_batches(place: Place, name: str) -> None:
    place.put(name, CONTENT[name])
    source = opened(place, name)
    assert source.columns() == ("id", "text")
    assert [batch.num_rows for batch in source.batches(20)] == [20, 20, 10]
    assert list(source.batches(20)) == list(source.batches(20)), "batch i is the same on every read"
    assert ids(source) == [str(n) for n in range(50)]


@pytest.mark.parametrize("name", CONTENT)
def test_the_version_changes_with_the_content(place: Place, name: str) -> None:
    place.put(name, CONTENT[name])
    source = opened(place, name)
    version = source.version()
    assert version is not None
    assert version == opened(place, name).version()
    place.put(name, CONTENT[name][:-1] + b"X")
    assert source.version() != version


def test_a_local_file_rewritten_with_the_same_size_has_another_version(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(CONTENT["in.csv"])
    version = open_source(str(path)).version()
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert open_source(str(path)).version() != version


def test_a_folder_and_a_pattern_read_their_files_by_name(place: Place) -> None:
    place.put("in/b.csv", b"id,text\n3,c\n")
    place.put("in/a.csv", b"id,text\n1,a\n2,b\n")
    place.put("in/_SUCCESS", b"")
    place.put("in/.hidden.csv", b"rubbish")
    assert ids(opened(place, "in")) == ["1", "2", "3"]
    assert ids(opened(place, "in/")) == ["1", "2", "3"]
    version = opened(place, "in/*.csv").version()
    place.put("in/c.csv", b"id,text\n4,d\n")
    assert ids(opened(place, "in/*.csv")) == ["1", "2", "3", "4"]
    assert opened(place, "in/*.csv").version() != version


def test_what_cannot_be_read_is_named_with_what_was_expected(place: Place) -> None:
    place.put("in.txt", b"x")
    place.put("mixed/a.csv", b"id\n1\n")
    place.put("mixed/b.jsonl", b'{"id": 1}\n')
    place.put("notes/a.csv", b"id\n1\n")
    place.put("notes/readme.md", b"x")
    place.put("nested/2026/a.csv", b"id\n1\n")
    place.put("hidden/.a.csv", b"id\n1\n")
    for name, message in {
        "none.csv": r"none\.csv: does not exist; expected a file, a folder, or a pattern",
        "*.pq": "no file matches",
        "in.txt": r"format of in\.txt unknown; expected a name ending in \.csv",
        "mixed": "holds csv and jsonl; choose one",
        "notes": r"format of readme\.md unknown",
        "nested": "holds the folder 2026",
        "hidden": "the folder is empty",
    }.items():
        with pytest.raises(SourceError, match=message):
            opened(place, name)


def test_a_file_that_vanishes_is_an_error_that_names_it(place: Place) -> None:
    place.put("in.csv", CONTENT["in.csv"])
    source = opened(place, "in.csv")
    place.remove("in.csv")
    with pytest.raises(SourceError, match=r"in\.csv: does not exist"):
        list(source.batches(10))


def test_relative_paths_and_file_urls_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.csv").write_bytes(CONTENT["in.csv"])
    monkeypatch.chdir(tmp_path)
    for uri in ("in.csv", f"file://{tmp_path}/in.csv", str(tmp_path / "in.csv")):
        assert len(ids(open_source(uri))) == 50


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "in[1].csv").write_bytes(CONTENT["in.csv"])
    assert len(ids(open_source(str(tmp_path / "in[1].csv")))) == 50
