"""What the benchmarks of the call path share: rows, a policy, peers' environments, and measuring in a process apart.

Every measurement is a process of its own, so that imports, memory and CPU time are its own. The benchmark, and with it
every server that it starts, keeps to one core; what is measured has another to itself. Clients from other environments
import this module: at import it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parent
MODEL = "gpt-4o-mini"
MAX_TOKENS = 100
_WORDS = (
    "card transfer refund balance limit abroad fee pending cash machine app statement charge date account branch "
    "payment currency exchange rate top up cheque standing order direct debit savings interest overdraft identity"
).split()
_ROW_CHARS = 450


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run came to."""

    cpu_ms: float
    """CPU of the client's own process, all threads, per row."""
    rate: float
    """Rows a second."""
    rows: int
    lost: int = 0
    """Rows without an answer."""
    reused: int = 0
    """Rows answered from the client's own store."""
    peak_mb: float = 0.0
    version: str = ""


class Stopwatch:
    """CPU of this process and its finished children, and time on the wall, since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = _cpu_seconds(), time.perf_counter()

    def figures(self, rows: int, *, lost: int = 0, reused: int = 0, version: str = "") -> Figures:
        cpu, wall = _cpu_seconds() - self._cpu, time.perf_counter() - self._wall
        return Figures(1000 * cpu / rows, rows / wall, rows, lost, reused, _peak_mb(), version)


def _peak_mb() -> float:
    """The most memory this process ever had resident (not ``ru_maxrss``, which begins with what the parent had)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def texts(first: int, count: int) -> list[str]:
    """Inquiries of some 450 characters, each another one, each with an e-mail address."""
    return [long_text(number) for number in range(first, first + count)]


def short_text(number: int) -> str:
    """An inquiry of some 60 characters, as most are, with nothing personal in it."""
    words = [_WORDS[(number * step + step * step) % len(_WORDS)] for step in range(1, 6)]
    return f"Question {number}: what about my {' '.join(words)}?"


def long_text(number: int) -> str:
    words = [_WORDS[(number * step + step * step) % len(_WORDS)] for step in range(1, 70)]
    head = f"Question {number} of customer{number}@example.com: "
    return (head + " ".join(words))[:_ROW_CHARS]


def parquet(path: Path, first: int, count: int, text: Callable[[int], str] = long_text) -> Path:
    """A source of texts with an ``id``, written in pieces: the million rows need not fit in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"id": pa.int64(), "text": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(first, first + count, 50_000):
            size = min(50_000, first + count - start)
            ids = pa.array(range(start, start + size), pa.int64())
            made = pa.array([text(number) for number in range(start, start + size)])
            writer.write_table(pa.table([ids, made], schema=schema), row_group_size=10_000)
    return path


def policy(path: Path, *, model: str = f"openai/{MODEL}", adapter: str | None = None, **deployment: Any) -> Path:
    """A policy of one deployment and one route ``bench`` that masks, and reuses within the team."""
    only = {"model": model, "price": {"input_per_mtok": 0.15, "output_per_mtok": 0.60}, **deployment}
    if adapter:
        only["adapter"] = adapter
    route = {"tiers": {"simple": ["only"]}, "masking": "standard", "max_tokens": MAX_TOKENS}
    whole = {
        "version": 1,
        "deployments": {"only": only},
        "routes": {"bench": {**route, "reuse": {"scope": "team"}}},
        "budgets": [{"period": "total", "limit_usd": 100_000}],
        "masking": {"standard": {"detect": ["email", "phone", "cn_id", "card", "iban", "ip", "secret"]}},
    }
    path.write_text(json.dumps(whole, indent=1))  # JSON is YAML
    return path


def knows_adapters() -> bool:
    """Whether a deployment can name its adapter; where not, every vendor is reached through litellm."""
    from airflow_ai_provider.core.policy import Deployment

    return "adapter" in Deployment.model_fields


@dataclass(frozen=True, slots=True)
class Client:
    """One way to send the rows: a function of a script, in the environment whose ``python`` it needs."""

    name: str
    script: str
    function: str
    python: Path = Path(sys.executable)
    options: tuple[tuple[str, Any], ...] = ()
    rows: int | None = None
    """Fewer rows than the others send, where a row takes long."""
    rounds: int = 3

    def run(self, **arguments: Any) -> Figures:
        """One measurement. The arguments go through a pipe: an address may hold a password."""
        given = {"function": self.function, **dict(self.options), **arguments}
        command = [str(self.python), str(BENCHMARKS / self.script)]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.name} failed:\n{done.stderr[-3000:]}")
        return Figures(**json.loads(done.stdout.splitlines()[-1]))


def answer(functions: Mapping[str, Callable[..., Figures]]) -> None:
    """The other end of ``Client.run``: the function that is asked for, on the clients' core."""
    arguments = json.loads(sys.stdin.read())
    keep_to_core(0)
    figures = functions[arguments.pop("function")](**arguments)
    print(json.dumps(asdict(figures)))


def keep_to_core(number: int) -> None:
    """Keep this process, and those it starts, to one core; nothing happens on a machine that has no such core."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {number})


def medians(runs: Sequence[Figures]) -> Figures:
    """Of CPU and rate; of the rest the worst."""
    cpu, rate = (statistics.median(getattr(run, name) for run in runs) for name in ("cpu_ms", "rate"))
    lost, peak = max(run.lost for run in runs), max(run.peak_mb for run in runs)
    return replace(runs[0], cpu_ms=cpu, rate=rate, lost=lost, peak_mb=peak)


def environment(name: str) -> Path:
    """The Python of a peer that our lock file cannot hold, made from ``requirements/NAME.txt``, with hashes."""
    requirements = BENCHMARKS / "requirements" / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    home = ROOT / ".tools" / "bench" / f"{name}-{digest}"
    python, made = home / "bin" / "python", home / "made"
    if not made.exists():
        print(f"making an environment for {name} …", file=sys.stderr, flush=True)
        uv = shutil.which("uv", path=f"{ROOT / '.tools/bin'}{os.pathsep}{os.environ.get('PATH', '')}")
        if uv is None:
            raise SystemExit("uv is needed to make the peers' environments: make bench puts it into .tools")
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(home)], check=True)
        install = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            str(python),
            "--require-hashes",
            "-r",
            str(requirements),
        ]
        if subprocess.run(install).returncode:  # behind a proxy with a certificate authority of its own
            subprocess.run([*install, "--system-certs"], check=True)
        made.touch()
    return python


@contextlib.contextmanager
def servers() -> Iterator[dict[str, str]]:
    """PostgreSQL and Redis of their own, as the arguments that ``governed.py`` takes."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.postgres import postgres_server
    from support.redis_server import redis_server

    with postgres_server() as postgres, redis_server() as redis:
        yield {"ledger_url": postgres.create_database("bench"), "cache_url": redis.url}
