"""Reading documents from folders and object stores."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.vectors.documents import (
    MAX_DOCUMENT_BYTES,
    BadDocument,
    Document,
    parse_document,
    read_documents,
)
from airflow_ai_provider.errors import SourceError


def _good(doc_id: str, text: str) -> Document:
    document = parse_document(doc_id, text.encode())
    assert isinstance(document, Document)
    return document


def test_a_folder_is_read_recursively_in_order(tmp_path: Path) -> None:
    """Only documents, hidden ones left out, ids relative to the folder."""
    for name in ("b.md", "a/x.txt", "a/Y.MARKDOWN", "a/data.csv", ".git/z.md", "a/.hidden.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    found = list(read_documents(str(tmp_path)))
    assert [d.doc_id for d in found] == ["a/Y.MARKDOWN", "a/x.txt", "b.md"]
    last = found[-1]
    assert isinstance(last, Document)
    assert last.sha256 == hashlib.sha256(b"text of b.md").hexdigest()
    assert last.uri == f"file://{tmp_path}/b.md"


def test_one_file_is_a_source_too(tmp_path: Path) -> None:
    """Its name is its id."""
    (tmp_path / "only.md").write_text("# Hello\n\nthere")
    (document,) = read_documents(str(tmp_path / "only.md"))
    assert isinstance(document, Document)
    assert (document.doc_id, document.title) == ("only.md", "Hello")


def test_an_fsspec_url_is_read() -> None:
    """Any filesystem of fsspec serves."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/vectors_docs/sub/a.md": b"# A\n\nb", "/vectors_docs/c.txt": b"c"})
    assert [d.doc_id for d in read_documents("memory://vectors_docs")] == ["c.txt", "sub/a.md"]


def test_a_missing_folder_is_refused_at_once(tmp_path: Path) -> None:
    """Before the first document is asked for."""
    with pytest.raises(SourceError, match=r"nowhere.*no such folder"):
        read_documents(str(tmp_path / "nowhere"))


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    """The message says what was expected."""
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(SourceError, match=r"no document among 1 files.*\.md"):
        read_documents(str(tmp_path))


def test_an_unknown_url_is_refused_without_its_password() -> None:
    """Nor is a password in the URL shown."""
    with pytest.raises(SourceError, match=r"nonsense://host/x") as caught:
        read_documents("nonsense://me:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"fine\ncaf\xe9 menu", "not UTF-8 at line 2, byte 8: save it as UTF-8"),
        ("文".encode("utf-16"), "UTF-16"),
        (b"a\x00b", "NUL"),
        (b"---\ntitle: x\n---\n \n", "empty"),
        (b"---\nkey: [unclosed\n---\nbody", "not valid YAML at line"),
    ],
)
def test_a_bad_file_says_why(raw: bytes, reason: str) -> None:
    """The reason names the place and the remedy."""
    document = parse_document("x.md", raw)
    assert isinstance(document, BadDocument)
    assert reason in document.reason


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    """It comes out in its place."""
    (tmp_path / "a.md").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.md").write_text("good")
    with (tmp_path / "c.md").open("wb") as huge:
        huge.truncate(MAX_DOCUMENT_BYTES + 1)
    assert [type(d) for d in read_documents(str(tmp_path))] == [BadDocument, Document, BadDocument]


def test_front_matter_becomes_flat_strings() -> None:
    """Scalars stay as written; nested values and odd keys are left out."""
    document = _good("a.md", "---\nlanguage: no\nversion: 1.10\ntags: [a, b]\n'bad key!': x\n---\nbody\n")
    assert document.metadata == {"language": "no", "version": "1.10"}
    assert document.text == "body\n"


@pytest.mark.parametrize("text", ["---\njust a rule\n---\nrest", "---\nno end", "a\n---\nb: c\n---\n"])
def test_what_is_no_front_matter_is_body(text: str) -> None:
    """A thematic break at the top loses nothing."""
    assert _good("a.md", text).text == text


@pytest.mark.parametrize(
    ("doc_id", "text", "title"),
    [
        ("a.md", "---\ntitle: From matter\n---\n# Heading one #\n", "Heading one"),
        ("a.md", "---\ntitle: From matter\n---\n## Overview\n", "From matter"),
        ("a.md", "```\n# comment\n```\n## Second level\ntext", "Second level"),
        ("how/to_pay.md", "only text", "to_pay"),
        ("notes.txt", "# a shell comment\n", "notes"),
        ("退款.md", "﻿# 退款政策\r\n正文", "退款政策"),
    ],
)
def test_the_title(doc_id: str, text: str, title: str) -> None:
    """First heading of level 1, front matter, any first heading, file name."""
    assert _good(doc_id, text).title == title


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"---\n{text}\n---\nbody".encode()))
def test_any_bytes_give_a_document_or_a_reason(raw: bytes) -> None:
    """No file makes the reader fail."""
    document = parse_document("x.md", raw)
    assert isinstance(document, Document) or document.reason
