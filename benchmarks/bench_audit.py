"""The audit trail: what an event costs on the call path, how fast a trail verifies, and what it takes in the archive.

Events are those of the gateway's calls, with all their fields, in batches of 250 that share one flush. Each figure
stands beside peers that are measured in the same run over the same events: what a program writes that keeps a JSON log
with the standard library, with and without a hash chain. CPU is of the process; the disk's time is not in it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rfc8785

from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import load_or_create_signing_key, public_keys
from airflow_ai_provider.core.audit.sinks.archive import FolderArchive
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.chain import canonical_unchecked
from airflow_ai_provider.core.audit.trail.events import build_event, utc_now
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.core.ledger.database import Ledger

EVENTS, BATCH = 100_000, 250
WHO = {
    "user": "ada",
    "dag_id": "customer_support",
    "run_id": "manual__2025-01-31T12:00:00+00:00",
    "task_id": "answer",
    "map_index": 3,
    "try_number": 1,
    "team": "support",
    "host": "worker-7.internal",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        calls = make_calls(EVENTS)
        ours_cpu = write_trail(root, calls)
        verified, ours_rate = verify_trail(root)
        assert verified == EVENTS, verified
        objects = (root / "archive" / "segments").rglob("*.gz")
        ours_bytes = sum(path.stat().st_size for path in objects) / EVENTS
        documents = [
            build_event("llm.call", "ok", f"w-{n}", "2025-01-31T12:00:00.000Z", {**WHO, **call})
            for n, call in enumerate(calls)
        ]
        log_cpu = write_log(root / "log.jsonl", documents)
        chain_cpu = write_chain(root / "chain.jsonl", documents)
        log_bytes, chain_bytes = packed(root / "log.jsonl"), packed(root / "chain.jsonl")
        chain_rate = verify_chain(root / "chain.jsonl.gz")
        print(f"{'':<34}{'CPU ms/event':>14}{'verify events/s':>17}{'archived B/event':>18}")
        row("audit trail", ours_cpu, ours_rate, ours_bytes)
        row("json + hashlib chain, gzip", chain_cpu, chain_rate, chain_bytes)
        row("logging, JSON lines, gzip", log_cpu, None, log_bytes)
        print(f"{'trail / chain':<34}{ours_cpu / chain_cpu:>14.2f}{ours_rate / chain_rate:>17.2f}", end="")
        print(f"{ours_bytes / chain_bytes:>18.2f}")
        canonical_table(documents)


def row(name: str, cpu: float, rate: float | None, size: float) -> None:
    shown = f"{rate:,.0f}" if rate is not None else "none"
    print(f"{name:<34}{cpu:>14.4f}{shown:>17}{size:>18.1f}")


def make_calls(count: int) -> list[dict[str, Any]]:
    """Fields of calls as the recorder gives them: random ids and hashes, small numbers that vary."""
    rng = random.Random(1)

    def name() -> str:
        return f"{rng.getrandbits(128):032x}"

    return [
        {
            "request_id": name(),
            "attempt_id": name(),
            "route": "support",
            "tier": "simple",
            "deployment": rng.choice(["small", "house"]),
            "model": "openai/gpt-4o-mini",
            "provider": "openai",
            "input_tokens": rng.randint(100, 900),
            "output_tokens": rng.randint(10, 120),
            "cost_nano": rng.randint(10_000, 200_000),
            "latency_ms": rng.randint(200, 3_000),
            "prompt_hash": name(),
            "answer_hash": name(),
            "hash_key_id": "k1",
        }
        for _ in range(count)
    ]


def write_trail(root: Path, calls: Sequence[dict[str, Any]]) -> float:
    """CPU milliseconds per event: emitted one by one, durable after every batch."""
    with Ledger.open(f"sqlite:///{root / 'ledger.db'}") as ledger:
        trail = Trail(Spool(root / "spool"), LedgerAuditStore(ledger), context=WHO)
        trail.emit("llm.call", request_id="0")  # opens and registers the segment
        started = time.process_time()
        for start in range(1, len(calls), BATCH):
            for call in calls[start : start + BATCH]:
                trail.emit("llm.call", "ok", **call)
            trail.flush()
        spent = time.process_time() - started
        trail.close()
        key = load_or_create_signing_key(root / "keys")
        seal_trail(Spool(root / "spool"), FolderArchive(root / "archive"), LedgerAuditStore(ledger), key, utc_now())
    return 1000 * spent / len(calls)


def verify_trail(root: Path) -> tuple[int, float]:
    """Events verified, and per CPU second: archive, chain, Merkle roots, manifests, pins and registry."""
    keys = public_keys(load_or_create_signing_key(root / "keys"))
    with Ledger.open(f"sqlite:///{root / 'ledger.db'}") as ledger:
        started = time.process_time()
        report = verify(FolderArchive(root / "archive"), Spool(root / "spool"), LedgerAuditStore(ledger), keys)
        spent = time.process_time() - started
    assert report.status == 0, report.findings
    return report.events, report.events / spent


def write_log(path: Path, documents: Sequence[dict[str, Any]]) -> float:
    logger = logging.getLogger("bench")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    started = time.process_time()
    for start in range(0, len(documents), BATCH):
        for document in documents[start : start + BATCH]:
            logger.info("%s", json.dumps(document))
        os.fdatasync(handler.stream.fileno())
    spent = time.process_time() - started
    logger.removeHandler(handler)
    handler.close()
    return 1000 * spent / len(documents)


def write_chain(path: Path, documents: Sequence[dict[str, Any]]) -> float:
    """What one writes by hand: sorted JSON, and SHA-256 over the line before and this one."""
    value = bytes(32)
    started = time.process_time()
    with path.open("wb") as stream:
        for start in range(0, len(documents), BATCH):
            for document in documents[start : start + BATCH]:
                body = json.dumps(document, sort_keys=True, separators=(",", ":"))
                value = hashlib.sha256(value + body.encode()).digest()
                stream.write(f'{{"event":{body},"h":"{value.hex()}"}}\n'.encode())
            stream.flush()
            os.fdatasync(stream.fileno())
    return 1000 * (time.process_time() - started) / len(documents)


def verify_chain(path: Path) -> float:
    value, count = bytes(32), 0
    started = time.process_time()
    with gzip.open(path) as stream:
        for line in stream:
            read = json.loads(line)
            body = json.dumps(read["event"], sort_keys=True, separators=(",", ":"))
            value = hashlib.sha256(value + body.encode()).digest()
            assert value.hex() == read["h"]
            count += 1
    return count / (time.process_time() - started)


def packed(path: Path) -> float:
    """Bytes per event after gzip -9, as log rotation does it."""
    target = Path(f"{path}.gz")
    target.write_bytes(gzip.compress(path.read_bytes(), 9))
    return target.stat().st_size / EVENTS


def canonical_table(documents: Sequence[dict[str, Any]]) -> None:
    """Which canonical JSON the hot path can afford."""
    plain: Callable[[Any], bytes] = rfc8785.dumps
    print(f"\n{'canonical JSON':<34}{'CPU ms/event':>14}")
    for name, dumps in (("orjson, keys sorted (used)", canonical_unchecked), ("rfc8785 (oracle of the tests)", plain)):
        some = documents[:20_000]
        started = time.process_time()
        for document in some:
            dumps(document)
        print(f"{name:<34}{1000 * (time.process_time() - started) / len(some):>14.4f}")
    assert all(plain(document) == canonical_unchecked(document) for document in documents[:2_000])


if __name__ == "__main__":
    main()
