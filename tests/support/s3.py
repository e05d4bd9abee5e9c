"""A real S3 with Object Lock for tests: Ceph's RADOS Gateway with one monitor and one store in memory.

Ready in about two seconds, because the monitor is told to decide at once instead of once a second. Where Ceph is not
installed, ``s3_store`` gives moto's server, which knows conditional writes but no more of Object Lock than its form
(it lets a COMPLIANCE lock be shortened and versioning be suspended): a test that needs the lock asks ``real``.

Standard library only at import; scripts/ensure_services.py takes the look-up of binaries from here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.server import MissingService, Server, free_port, running

CEPH_PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
_PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
_PATH = f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin"

# Keys are not checked between daemons of one test on loopback. ``crc`` first: ``secure`` needs such keys.
_CONF = """[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}/0]
mon_initial_members = a
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc secure
ms_bind_ipv6 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_warn = 1
mon_data_avail_crit = 1
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
osd_objectstore = memstore
memstore_device_bytes = 1073741824
run_dir = {folder}
crash_dir = {folder}
admin_socket = {folder}/$name.$pid.asok
log_file = {folder}/$name.ceph.log
pid_file = {folder}/$name.pid
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{web_port}
rgw_thread_pool_size = 32
rgw_run_sync_thread = false
"""


@dataclass(frozen=True, slots=True)
class S3Store:
    """Where a test finds its S3."""

    url: str
    access_key: str
    secret_key: str
    real: bool
    """Object Lock is enforced."""
    version: str

    @property
    def options(self) -> dict[str, Any]:
        """As fsspec and ``s3_client`` take them."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.url,
            "client_kwargs": {"region_name": "us-east-1"},
        }


def find_ceph() -> Path | None:
    """The radosgw binary when everything it needs is there too, or None."""
    found = [shutil.which(program, path=_PATH) for program in _PROGRAMS]
    return Path(found[0]) if found[0] and all(found) else None


class _Daemon(Server):
    """One process of the cluster."""

    def __init__(self, folder: Path, name: str, arguments: list[str], port: int) -> None:
        self.name = name
        super().__init__(folder)
        self.port = port
        self._arguments = arguments

    def command(self) -> list[str]:
        return [
            shutil.which(self.name, path=_PATH) or self.name,
            "-c",
            str(self.folder / "ceph.conf"),
            *self._arguments,
        ]

    def answers(self) -> bool:
        match self.name:
            case "ceph-mon":
                return ceph(self.folder, "mon", "stat").returncode == 0
            case "ceph-osd":
                return b"1 up" in ceph(self.folder, "osd", "stat").stdout
        return _answers(f"http://127.0.0.1:{self.port}/")


class RadosGateway:
    """A cluster of one: monitor, object store in memory, gateway. What it held is gone when it stops."""

    def __init__(self, folder: Path) -> None:
        if find_ceph() is None:
            raise MissingService(
                "Ceph's gateway is not installed. Run: python scripts/ensure_services.py    or: sudo apt-get install "
                + " ".join(CEPH_PACKAGES)
            )
        self.folder = folder
        self.port, mon_port = free_port(), free_port()
        fsid = str(uuid.uuid4())
        for each in ("mon", "osd", "rgw"):
            (folder / each).mkdir()
        conf = _CONF.format(fsid=fsid, port=mon_port, folder=folder, web_port=self.port)
        (folder / "ceph.conf").write_text(conf)
        self._osd = str(uuid.uuid4())
        self._fsid, self._mon_port = fsid, mon_port
        self._daemons = [
            _Daemon(folder, "ceph-mon", ["-i", "a", "-f"], mon_port),
            _Daemon(folder, "ceph-osd", ["-i", "0", "-f"], 0),
            _Daemon(folder, "radosgw", ["-n", "client.admin", "-f"], self.port),
        ]

    def start(self) -> S3Store:
        """Start everything and make a user."""
        monitor, store, gateway = self._daemons
        address = f"[v2:127.0.0.1:{self._mon_port}/0]"
        monmap = str(self.folder / "monmap")
        _run(self.folder, "monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monmap)
        _run(self.folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        monitor.start()
        ceph(self.folder, "osd", "new", self._osd, check=True)
        _run(self.folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", self._osd)
        store.start()
        gateway.start()
        access, secret = secrets.token_hex(10), secrets.token_hex(20)
        user = ("user", "create", "--uid=tests", "--display-name=tests")
        _run(self.folder, "radosgw-admin", "-n", "client.admin", *user, f"--access-key={access}", f"--secret={secret}")
        version = _run(self.folder, "radosgw", "--version").stdout.decode().split()[2]
        return S3Store(f"http://127.0.0.1:{self.port}", access, secret, real=True, version=f"Ceph RGW {version}")

    def stop(self) -> None:
        # Nothing has to be kept, and an orderly end of a cluster takes longer than its life.
        for daemon in reversed(self._daemons):
            daemon.crash()


class MotoServer(Server):
    """moto's S3 in a process of its own."""

    name = "moto"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        return _answers(f"http://127.0.0.1:{self.port}/moto-api/data.json")


@contextlib.contextmanager
def s3_store() -> Iterator[S3Store]:
    """Ceph where it is installed, moto elsewhere."""
    with _removed_afterwards() as folder:
        if find_ceph() is None:
            with running(MotoServer(folder)) as server:
                yield S3Store(f"http://127.0.0.1:{server.port}", "key", "secret", real=False, version="moto")
            return
        gateway = RadosGateway(folder)
        try:
            yield gateway.start()
        finally:
            gateway.stop()


@contextlib.contextmanager
def _removed_afterwards() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ceph(folder: Path, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[bytes]:
    return _run(folder, "ceph", "--connect-timeout", "10", *arguments, check=check)


def _run(folder: Path, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    command = [shutil.which(program, path=_PATH) or program, *arguments]
    environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{program} failed: {done.stderr.decode(errors='replace')[-1000:]}")
    return done


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
