#!/usr/bin/env python3
"""Make sure that what the tests need (PostgreSQL, PgBouncer, Redis, faketime) is installed, and Ceph if it can be.

Exit status 0: they are there. 1: they are not, and the message names the packages and the command to run.
Standard library only: it runs before anything is installed. On Debian and Ubuntu, as root or where ``sudo`` asks
no password, it installs what is missing and starts none of it: the tests start servers of their own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.clock import find_faketime
from support.postgres import (
    find_pgbouncer,
    find_postgres,  # the look-up the tests themselves use
)
from support.redis_server import find_redis
from support.s3 import CEPH_PACKAGES, find_ceph

FINDERS: dict[str, Callable[[], Path | None]] = {
    "postgresql": find_postgres,
    "pgbouncer": find_pgbouncer,
    "redis-server": find_redis,
    "libfaketime": find_faketime,
}
OPTIONAL = {"ceph": (CEPH_PACKAGES, find_ceph)}
"""Without Ceph, the archive in S3 is tested against moto, and what moto does not enforce is not tested."""
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks this file whether a package may start its service; 101 is "no"
APT = ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"]
APT += ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]  # without a network, to know it soon


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only look; install nothing")
    arguments = parser.parse_args()
    missing = missing_packages()
    if missing and not arguments.check:
        why_not = install(missing)
        missing = missing_packages()
    else:
        why_not = ""
    if missing:
        print(advice(missing, why_not), file=sys.stderr)
        return 1
    for package, find in FINDERS.items():
        print(f"{package}: {find()}")
    for name, (packages, find) in OPTIONAL.items():
        if find() is None and not arguments.check:
            why_not = install(list(packages))
        print(f"{name}: {find() or f'not installed {why_not}'.strip()}")
    return 0


def missing_packages() -> list[str]:
    return [package for package, find in FINDERS.items() if find() is None]


def advice(missing: list[str], why_not: str) -> str:
    packages = " ".join(missing)
    reason = f" ({why_not})" if why_not else ""
    return (
        f"The tests need servers that this machine does not have: {packages}{reason}.\n"
        f"On Debian or Ubuntu run:\n    sudo apt-get update && sudo apt-get install {packages}\n"
        "Elsewhere install PostgreSQL 13 or newer, PgBouncer 1.18 or newer and Redis 6 or newer, with `postgres`, "
        "`initdb`, `pgbouncer` and `redis-server` on PATH, and libfaketime in /usr/lib/*/faketime. No service needs to "
        "run: the tests start their own."
    )


def install(packages: list[str]) -> str:
    """Install Debian packages; the reason why not, or an empty string."""
    if shutil.which("apt-get") is None:
        return "no apt-get here to install them with"
    prefix = root_prefix()
    if prefix is None:
        return "installing needs root, or sudo without a password"
    print(f"installing {' '.join(packages)} with apt-get", flush=True)
    added = forbid_starting(prefix)
    try:
        for step in (["update"], ["install", "--no-install-recommends", *packages]):
            command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", *APT, *step]
            status = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
            if status and step[0] == "install":
                return f"apt-get ended with status {status}; what it said is above"
    finally:
        if added:
            subprocess.run([*prefix, "rm", "-f", str(POLICY)], check=False)
    return ""


def root_prefix() -> list[str] | None:
    """What to put before a command so that root runs it; None if this user may not."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], check=False, capture_output=True).returncode == 0:
        return [sudo, "-n"]
    return None


def forbid_starting(prefix: list[str]) -> bool:
    """Keep the packages from starting their services; True if a file was added that has to go afterwards."""
    if POLICY.exists():
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write("#!/bin/sh\nexit 101\n")
        script.flush()
        made = subprocess.run([*prefix, "install", "-m", "755", script.name, str(POLICY)], check=False)
    return made.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
