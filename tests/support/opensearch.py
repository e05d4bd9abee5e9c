"""A real search server for tests: OpenSearch 2.19 as a library from Maven Central, one node on loopback.

There is no Elasticsearch server in any package registry. OpenSearch keeps the bulk, search and data stream interfaces
of Elasticsearch 7.10; what is Elasticsearch's alone (ILM, ``compatible-with`` headers) is in ``search_double``.

Needs a JDK and Maven, and the packages once; ``MissingService`` says which of them is not there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from support.server import MissingService, Server, free_port, running, temporary_folder

HERE = Path(__file__).resolve().parents[1] / "opensearch"
VERSION = "OpenSearch 2.19.1"


class OpenSearchServer(Server):
    """Keeps its data while it is stopped."""

    name = "opensearch"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._class_path = class_path()
        self._transport_port = free_port()
        (folder / "config").mkdir()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [
            *("java", "-Xms384m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *(f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}", "-cp", self._class_path),
            *(str(HERE / "SearchNode.java"), str(self.folder), str(self.port), str(self._transport_port)),
        ]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/_cluster/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def class_path() -> str:
    """The server's jars, from Maven's local repository; fetched if they are not there."""
    for program, need in (("javac", "a JDK (11 or newer)"), ("mvn", "Maven")):
        if shutil.which(program) is None:
            raise MissingService(f"OpenSearch needs {need}, and {program} is not on PATH")
    cached = Path.home() / ".m2" / "airflow-ai-opensearch.classpath"
    cached.parent.mkdir(exist_ok=True)
    if not _is_whole(cached):
        _resolve(cached)
    return cached.read_text()


def _is_whole(cached: Path) -> bool:
    pom = (HERE / "pom.xml").stat().st_mtime
    known = cached.exists() and cached.stat().st_uid == os.getuid() and cached.stat().st_mtime > pom
    return known and all(Path(jar).exists() for jar in cached.read_text().split(":"))


def _resolve(target: Path) -> None:
    command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:build-classpath"]
    try:
        done = subprocess.run(
            [*command, f"-Dmdep.outputFile={target}"], capture_output=True, text=True, timeout=240, check=False
        )
    except subprocess.TimeoutExpired:
        raise MissingService("OpenSearch's packages could not be fetched with Maven within 4 minutes") from None
    if done.returncode:
        reason = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason given")
        raise MissingService(f"OpenSearch's packages could not be fetched with Maven: {reason[:300]}")


@contextlib.contextmanager
def search_server() -> Iterator[OpenSearchServer]:
    """A running server with nothing in it."""
    with temporary_folder("opensearch", None) as folder, running(OpenSearchServer(folder)) as server:
        yield server
