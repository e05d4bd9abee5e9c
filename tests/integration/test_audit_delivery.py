"""100,000 events, stores that fail, a deliverer that is killed: each event in both stores once, or a dead letter."""

from __future__ import annotations

import gzip
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fault_proxy import FaultProxy, Faults
from support.s3 import S3Store
from support.search_double import SearchDouble

from airflow_ai_provider.core.administration.audit_delivery import dead_letters
from airflow_ai_provider.core.audit.sealing.signing import load_verify_keys
from airflow_ai_provider.core.audit.sinks.s3_archive import S3Archive, s3_client
from airflow_ai_provider.core.audit.sinks.search import STREAM, SearchAddress
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.settings import Settings

EVENTS = 100_000
WRITERS = 8
SEGMENT = 4_000
KILLS = 7
FAULTS = Faults(unavailable=0.15, dropped=0.07, lost=0.10)
REJECTED = 0.05
POISON = 25


@dataclass
class Deliverer:
    """The process under test and what it has done to the index so far."""

    config: Path
    double: SearchDouble

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "support.audit_deliverer", str(self.config)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)

    def kill_at(self, documents: int) -> bool:
        """Run until the index holds so many and takes no more, then ``kill -9``. False when it ended before."""
        self.double.hold_after = documents
        process = self.start()
        while self.double.outcomes["201"] < documents and process.poll() is None:
            time.sleep(0.005)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.double.hold_after = None
        return not ended

    def finish(self) -> None:
        process = self.start()
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()[-2000:]


def write_trail(home: Path) -> list[str]:
    """What eight writers had to say, sealed and waiting."""
    spool, ids = Spool(home / "audit" / "spool"), []
    with open_ledger(None, home) as ledger:
        for writer in range(WRITERS):
            with Trail(spool, LedgerAuditStore(ledger), segment_events=SEGMENT) as trail:
                for start in range(0, EVENTS // WRITERS, 250):
                    ids += trail.emit_many([("llm.call", "ok", call(writer, start + each)) for each in range(250)])
                    trail.flush()
    return ids


def call(writer: int, number: int) -> dict[str, Any]:
    return {
        "request_id": f"{writer:04x}{number:028x}",
        "user": f"user-{number % 50}",
        "dag_id": "support",
        "run_id": f"run-{writer}",
        "model": "openai/gpt-4o-mini",
        "input_tokens": number,
        "cost_nano": number * 1000,
    }


def archived(client: Any, bucket: str) -> Counter[str]:
    """How often each event stands in the bucket, all versions of all objects counted; from the store itself."""
    found: Counter[str] = Counter()
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix="trail/segments/"):
        assert "DeleteMarkers" not in page
        for version in page["Versions"]:
            where = {"Key": version["Key"], "VersionId": version["VersionId"]}
            content = gzip.decompress(client.get_object(Bucket=bucket, **where)["Body"].read())
            found.update(orjson.loads(line)["event.id"] for line in content.splitlines()[1:-1])
    return found


@pytest.mark.timeout(420)
def test_every_event_is_in_both_stores_once_or_a_dead_letter(tmp_path: Path, s3: S3Store, record_property: Any) -> None:
    started, rng = time.monotonic(), random.Random(5)
    home, bucket = tmp_path / "home", f"chaos-{secrets.token_hex(6)}"
    ids = write_trail(home)
    assert len(set(ids)) == EVENTS
    client = s3_client(s3.options)
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    poison = set(rng.sample(ids, POISON))
    with (
        SearchDouble(rejected=REJECTED, poison=poison) as double,
        FaultProxy(double.url, FAULTS, seed=1) as search,
        FaultProxy(s3.url, FAULTS, seed=2) as store,
    ):
        place = {
            "home": str(home),
            "archive_uri": f"s3://{bucket}/trail",
            "archive_lock": "compliance",
            "storage_options": {**s3.options, "endpoint_url": store.url},
            "search_url": search.url,
        }
        config = tmp_path / "settings.json"
        config.write_text(json.dumps(place))
        deliverer = Deliverer(config, double)
        for moment in sorted(rng.sample(range(2_000, EVENTS - 5_000), KILLS)):
            assert deliverer.kill_at(moment), "it ended before it was killed"
            double.rollover(STREAM)  # ids are unique in one backing index only
        deliverer.finish()

        dealt = search.dealt + store.dealt
        record_property("faults", dict(dealt))
        assert min(dealt[name] for name in ("unavailable", "dropped", "lost")) > 10, dealt
        assert double.outcomes["429"] > 1_000
        indexed = Counter(document["event.id"] for document in double.documents(STREAM))
        assert set(indexed.values()) == {1}, "an event was indexed twice"
        settings = Settings(home=home, policy_path=home, search=SearchAddress(double.url))
        letters = dead_letters(settings)
        assert {letter.event_id for letter in letters} == poison
        assert len(letters) == POISON
        assert all(letter.reason.startswith("400 document_parsing_exception") for letter in letters)
        assert set(indexed) == set(ids) - poison
    in_archive = archived(client, bucket)
    assert set(in_archive.values()) == {1}, "an event was archived twice"
    assert set(in_archive) == set(ids)
    with open_ledger(None, home) as ledger:
        keys = load_verify_keys(home / "audit" / "keys")
        archive = S3Archive(client, bucket, "trail")
        report = verify(archive, Spool(home / "audit" / "spool"), LedgerAuditStore(ledger), keys)
    assert (report.status, report.findings, report.events) == (0, [], EVENTS)
    record_property("seconds", round(time.monotonic() - started))
    record_property("cpu", os.times().user + os.times().children_user)
