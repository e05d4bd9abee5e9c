"""Personal values stay in the house: not in requests, logs, ledger, audit trail, response store or summaries."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.map_jobs import Lab
from support.map_process import Spec

from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import load_or_create_signing_key
from airflow_ai_provider.core.audit.sinks.archive import FolderArchive
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.testing.behaviour import Faults
from airflow_ai_provider.testing.vendor import VendorProcess

ROOT = Path(__file__).parents[2]
INQUIRIES = ROOT / "include" / "inquiries.csv"
PLANTED: dict[str, list[dict[str, str]]] = json.loads((ROOT / "tests/data/planted.json").read_text(encoding="utf-8"))
ROWS: dict[str, dict[str, str]] = {
    row["inquiry_id"]: row for row in csv.DictReader(INQUIRIES.open(encoding="utf-8", newline=""))
}
PROMPT = "{{ text }}\n\nAnswer {{ customer_name }} in {{ language }}."
MASKING = {
    "standard": {
        "detect": ["email", "phone", "cn_id", "card", "iban", "ip", "secret"],
        "columns": {"customer_name": "PERSON"},
    }
}
TOKEN = re.compile(r"\[[A-Z][A-Z_]*_[A-Z0-9]{4,16}\]")


def personal_values() -> dict[str, str]:
    """Every value that must not leave, with the row it stands in."""
    values = {row["customer_name"]: key for key, row in ROWS.items()}
    values |= {planted["value"]: key for key, found in PLANTED.items() for planted in found}
    return values


def written_forms(value: str) -> Iterator[bytes]:
    """A value as bytes in a file: as it is, escaped as in JSON, and as UTF-16."""
    yield value.encode()
    yield json.dumps(value)[1:-1].encode()
    yield value.encode("utf-16-le")


def assert_absent(place: str, raw: bytes) -> None:
    """None of the values stands in these bytes. Messages name the row, never the value."""
    assert raw, f"{place} is empty, which proves nothing"
    found = {key for value, key in personal_values().items() if any(form in raw for form in written_forms(value))}
    assert not found, f"{place} holds values of {sorted(found)}"


def lab_for(folder: Path, vendor: VendorProcess, **options: Any) -> tuple[Lab, Spec]:
    # Failed calls and a rejected answer take other ways through code and logs than good ones.
    vendor.configure(faults=Faults(rate_500=0.05, rate_empty=0.02, rate_malformed=0.02), retry_after=0, seed=3)
    lab = Lab(
        folder,
        vendor,
        masking=MASKING,
        route={"masking": "standard", "max_tokens": 400, "reuse": {"scope": "team", "ttl": "1h"}},
        **options,
    )
    spec = lab.spec(str(INQUIRIES), key="inquiry_id", prompt=PROMPT)
    return lab, replace(spec, log_level=logging.DEBUG)


def assert_output_whole(lab: Lab) -> None:
    output = {row["inquiry_id"]: row for row in lab.output()}
    assert output.keys() == ROWS.keys()
    for key, row in output.items():
        assert {name: row[name] for name in ROWS[key]} == ROWS[key]
        if row["status"] == "rejected":
            assert row["error"].startswith("empty: ")
            continue
        assert (row["status"], row["error"]) == ("ok", None)
        assert not TOKEN.search(row["answer"]), key
        # The vendor repeats every token it saw: what was masked in this row is back, as it was written.
        lost = [planted["entity"] for planted in PLANTED.get(key, []) if planted["value"] not in row["answer"]]
        assert not lost, f"{key}: the answer lacks {lost}"
        assert row["customer_name"] in row["answer"], key
    assert sum(row["status"] == "ok" for row in output.values()) > len(ROWS) * 0.9


def assert_house_tight(lab: Lab, vendor: VendorProcess) -> None:
    """Requests, and whatever lies in the home or the folders around it except the answers themselves."""
    seen = vendor.requests()
    assert len(seen) >= len(ROWS)
    leaked = {key for value, key in personal_values().items() if vendor.find(value)}
    assert not leaked, f"the vendor saw values of {sorted(leaked)}"
    assert sum(bool(TOKEN.search(json.dumps(request.body))) for request in seen) >= len(ROWS)  # there was what to mask
    for folder in (lab.home, lab.folder / "runs", lab.folder / "archive"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.stat().st_size:
                raw = path.read_bytes()
                assert_absent(str(path), gzip.decompress(raw) if path.suffix == ".gz" else raw)


def seal(lab: Lab) -> None:
    with open_ledger(lab.ledger_url, lab.home) as ledger:
        key = load_or_create_signing_key(lab.folder / "keys")
        spool = Spool(lab.home / "audit" / "spool")
        seal_trail(spool, FolderArchive(lab.folder / "archive"), LedgerAuditStore(ledger), key, datetime.now(UTC))


def test_the_search_finds_what_it_looks_for() -> None:
    with pytest.raises(AssertionError, match="INQ-0001"):
        assert_absent("the inquiries", INQUIRIES.read_bytes())
    with pytest.raises(AssertionError, match="INQ-0012"):
        assert_absent("a body", json.dumps({"text": "from amara.n@example.com AMARA NWOSU"}).encode())


@pytest.mark.timeout(100)
def test_embedded(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    """Everything in files: SQLite ledger, SQLite response store, audit spool and archive."""
    lab, spec = lab_for(tmp_path, paid_vendor)
    process = lab.start(spec)
    summary = process.summary()
    assert_output_whole(lab)
    assert_absent("the summary", json.dumps(summary, ensure_ascii=False).encode())
    log = process.log_file.read_text(encoding="utf-8")
    assert "DEBUG:" in log
    assert not TOKEN.search(log), "the log holds a prompt or an answer, if a masked one"
    assert (lab.home / "ledger.db").stat().st_size > 50_000
    assert (lab.home / "responses.db").stat().st_size > 20_000
    assert_house_tight(lab, paid_vendor)
    seal(lab)
    assert list((tmp_path / "archive" / "segments").rglob("*.gz"))
    assert_house_tight(lab, paid_vendor)
    with lab.books() as books:
        assert {row["row_key"] for row in books.requests()} == ROWS.keys()
        assert_absent("the ledger's rows", json.dumps(books.requests(), default=str, ensure_ascii=False).encode())
    with sqlite3.connect(lab.home / "responses.db") as store:
        (stored,) = store.execute("SELECT count(*) FROM responses").fetchone()
    assert stored > len(ROWS) * 0.9


@pytest.mark.timeout(100)
def test_on_postgresql_and_redis(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str, empty_redis_url: str
) -> None:
    """The same over servers; a second run is answered from Redis and restores as well as the first."""
    import redis

    lab, spec = lab_for(tmp_path, paid_vendor, ledger_url=postgres_url, cache_url=empty_redis_url)
    spec = replace(spec, log_level=logging.INFO)
    lab.start(spec).summary()
    assert_output_whole(lab)
    answered = sum(row["status"] == "ok" for row in lab.output())
    later = lab.spec(str(INQUIRIES), key="inquiry_id", prompt=PROMPT, caller={"run_id": "run-2"})
    calls = len(paid_vendor.requests())
    assert lab.start(later).summary()["reused"] >= answered
    assert len(paid_vendor.requests()) <= calls + len(ROWS) - answered
    assert_output_whole(lab)
    assert_house_tight(lab, paid_vendor)
    with lab.books() as books:
        assert_absent("the ledger's rows", json.dumps(books.requests(), default=str, ensure_ascii=False).encode())
    with redis.Redis.from_url(empty_redis_url) as client:
        keys = client.keys("*")
        assert len(keys) >= answered
        assert_absent("Redis", b"\n".join(key + b"=" + client.get(key) for key in keys))
