"""What a collection holds: its schema, and the terms that chunks are searched by.

The search terms of a text: what a chunk is indexed by, and what a query asks for.

We cut the words ourselves instead of leaving it to the server's analyzer, because no analyzer that both Milvus Lite
and a Milvus server have can read Chinese: ``standard`` takes a run of Han characters for one word, and ``jieba`` is a
separate package that Milvus Lite does not bring. The server still computes BM25; it only finds words that need no
more cutting.

* Text is brought to one form: NFKC (full-width letters and digits), lower case, accents of Latin letters dropped.
* Han, kana and hangul runs become overlapping pairs of characters, the method of Lucene's ``CJKBigramFilter``.
* A pair is written in ASCII (``zh9000z6b3e``), so that every analyzer leaves it whole.
* English stop words are dropped, and plurals are reduced by the S-stemmer of Harman (1991, "How effective is
  suffixing?"). ``-ing``, ``-ed`` and ``-e`` of longer words are dropped too.

What a collection holds: one row per chunk, found by BM25 over its terms.

A document's chunks carry the document's fingerprint and the number of its chunks, so that a document that was written
only in part is seen as such by the next run.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from airflow_ai_provider.core.errors import PolicyError
from airflow_ai_provider.core.vectors.chunks import SPLIT_VERSION, Chunk
from airflow_ai_provider.core.vectors.documents import MAX_DOC_ID_BYTES, Document

TERMS_VERSION = 1
"""Part of a document's fingerprint: raise it when the same text would give other terms."""

_CJK = (
    "\u3005\u3007"  # iteration mark, zero
    "\u3040-\u30ff"  # hiragana, katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # Han
    "\uac00-\ud7a3"  # hangul
)
_RUN = re.compile(rf"([{_CJK}]+)|([^\W_{_CJK}]+)")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about an and any are as at be been but by can could did do does for from had has have how i if in into is
        it its me my no not of on or our so some such than that the their them then there these they this to us was
        we were what when where which who why will with would you your please hi hello dear thank thanks im ive id
        cant dont didnt doesnt isnt wont whats
        """,
    )
)


def terms(text: str) -> list[str]:
    """The terms of ``text`` in order, repeats included."""
    found: list[str] = []
    for match in _RUN.finditer(_APOSTROPHE.sub("", _normal(text))):
        if match[1]:
            found.extend(_pairs(match[1]))
        elif match[2] not in _STOP_WORDS:
            found.append(_stem(match[2]))
    return found


def _normal(text: str) -> str:
    lowered = unicodedata.normalize("NFKC", text).lower()
    if lowered.isascii():
        return lowered
    return unicodedata.normalize("NFC", "".join(_without_accents(lowered)))


def _without_accents(text: str) -> list[str]:
    return [_base(char) if "À" <= char <= "ỿ" else char for char in text]


def _base(char: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", char) if not unicodedata.combining(c))


def _pairs(run: str) -> list[str]:
    if len(run) == 1:
        return [f"zh{ord(run):x}"]
    return [f"zh{ord(a):x}z{ord(b):x}" for a, b in pairwise(run)]


def _stem(word: str) -> str:
    if len(word) < 4 or not (word.isascii() and word.isalpha()):
        return word
    return _verb_stem(_singular(word))


def _singular(word: str) -> str:
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def _verb_stem(word: str) -> str:
    """``cancel``, ``cancelling``, ``cancelled`` → ``cancel``; ``charge``, ``charged``, ``charging`` → ``charg``."""
    for suffix in ("ing", "ed", "e"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            word = word.removesuffix(suffix)
            break
    doubled = len(word) > 4 and word[-1] == word[-2] and word[-1] not in "aeiou"
    return word[:-1] if doubled else word


SCHEMA_VERSION = 1
"""Part of a document's fingerprint: raise it when the rows of the same chunks would differ."""

Row = dict[str, Any]

MAX_VARCHAR = 65_535
"""Milvus' own limit, in bytes."""
WIDTHS = {
    "chunk_id": 48,
    "doc_id": MAX_DOC_ID_BYTES,
    "doc_sha256": 64,
    "title": 1024,
    "heading": 2048,
    "text": MAX_VARCHAR,
    "terms": MAX_VARCHAR,
}
"""VARCHAR fields and their widths in UTF-8 bytes."""
SPARSE_FIELD = "sparse"
"""Written by Milvus from ``terms``; never sent."""
STORED_FIELDS = (*WIDTHS, "ordinal", "doc_chunks", "metadata")

BM25_K1, BM25_B = 1.2, 0.75
"""Robertson's usual values, and Lucene's defaults."""

_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def validate_collection(name: str) -> str:
    """``name`` itself, or PolicyError when Milvus would refuse it."""
    if not _COLLECTION.fullmatch(name):
        raise PolicyError(
            f"collection {name[:80]!r} is not a name Milvus takes: expected a letter or _ first, "
            "then letters, digits and _, at most 255 in all"
        )
    return name


def fingerprint(document: Document, max_chars: int, overlap: int) -> str:
    """Changes when the document or anything that decides about its rows changes. 64 hex digits."""
    made_by = f"{SCHEMA_VERSION}.{SPLIT_VERSION}.{TERMS_VERSION}.{max_chars}.{overlap}"
    return hashlib.sha256(f"{made_by}\n{document.doc_id}\n{document.sha256}".encode()).hexdigest()


def chunk_id(doc_id: str, ordinal: int) -> str:
    """Primary key: the same for the same place in the same document, in every run."""
    return f"{hashlib.sha256(doc_id.encode()).hexdigest()[:32]}#{ordinal:06d}"


def rows_of(document: Document, chunks: list[Chunk], doc_sha256: str) -> Iterator[Row]:
    """The rows of one document, in order."""
    for chunk in chunks:
        path = [title for title in chunk.heading_path if title != document.title]
        heading = _fit(" > ".join(path), WIDTHS["heading"])
        yield {
            "chunk_id": chunk_id(document.doc_id, chunk.ordinal),
            "doc_id": document.doc_id,
            "doc_sha256": doc_sha256,
            "title": _fit(document.title, WIDTHS["title"]),
            "heading": heading,
            "text": chunk.text,
            "terms": index_terms(document.title, heading, chunk.text),
            "ordinal": chunk.ordinal,
            "doc_chunks": len(chunks),
            "metadata": dict(document.metadata),
        }


def index_terms(title: str, heading: str, text: str) -> str:
    """What a chunk is found by: its own words, and those of the titles above it."""
    return _fit(" ".join(terms(f"{title}\n{heading}\n{text}")), WIDTHS["terms"])


def metadata_filter(wanted: Mapping[str, str] | None) -> str:
    """The Milvus expression for chunks whose metadata has all these values; empty for no filter."""
    return " and ".join(f"metadata[{_quoted(key)}] == {_quoted(value)}" for key, value in (wanted or {}).items())


def _quoted(value: str) -> str:
    """A string literal of Milvus' expression language. What could end the literal is refused, not escaped."""
    if any(char in '"\\' or ord(char) < 32 for char in value):
        raise PolicyError("a metadata filter holds a quote, a backslash or a control character: leave it out")
    return f'"{value}"'


def _fit(text: str, width: int) -> str:
    """``text`` cut to ``width`` UTF-8 bytes, at a character."""
    raw = text.encode()
    return text if len(raw) <= width else raw[:width].decode(errors="ignore")


def create_collection(client: Any, name: str) -> None:
    """Make an empty collection with its BM25 index; load it before use."""
    from pymilvus import DataType, Function, FunctionType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    for field, width in WIDTHS.items():
        options = {"enable_analyzer": True, "analyzer_params": {"tokenizer": "standard"}} if field == "terms" else {}
        schema.add_field(field, DataType.VARCHAR, max_length=width, is_primary=field == "chunk_id", **options)
    schema.add_field("ordinal", DataType.INT32)
    schema.add_field("doc_chunks", DataType.INT32)
    schema.add_field("metadata", DataType.JSON)
    schema.add_field(SPARSE_FIELD, DataType.SPARSE_FLOAT_VECTOR)
    bm25 = Function("bm25", FunctionType.BM25, input_field_names=["terms"], output_field_names=[SPARSE_FIELD])
    schema.add_function(bm25)
    index = MilvusClient.prepare_index_params()
    index.add_index(
        SPARSE_FIELD,
        index_type="SPARSE_INVERTED_INDEX",
        metric_type="BM25",
        params={"bm25_k1": BM25_K1, "bm25_b": BM25_B},
    )
    client.create_collection(name, schema=schema)
    # Not waited for: the client would ask for a timestamp, which Milvus Lite answers with a traceback in the log.
    # Loading the collection waits for the index anyway.
    client.create_index(name, index, sync=False)
