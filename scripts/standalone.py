"""``airflow standalone`` over the demo's home, on loopback: the same DAG, policy, ledger and answers, in a browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from demo import REPOSITORY, configure

PORT = os.environ.get("PORT", "8080")
_PARALLELISM = "4"
"""Worker processes at once; each takes some 200 MB."""


def main() -> int:
    home = Path(os.environ.get("DEMO_HOME") or REPOSITORY / ".demo").expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    configure(home)
    os.environ.update(
        AIRFLOW__API__HOST="127.0.0.1",
        AIRFLOW__API__PORT=PORT,
        AIRFLOW__API__BASE_URL=f"http://127.0.0.1:{PORT}",
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"http://127.0.0.1:{PORT}/execution/",
        AIRFLOW__CORE__PARALLELISM=_PARALLELISM,
        AIRFLOW__API__WORKERS="1",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    threading.Thread(target=_say_where, args=(home / "airflow",), daemon=True).start()
    try:
        return subprocess.run([str(Path(sys.executable).parent / "airflow"), "standalone"], check=False).returncode
    except KeyboardInterrupt:
        return 0


def _say_where(airflow_home: Path) -> None:
    """Once Airflow has made its password file: where to look and how to log in."""
    passwords = airflow_home / "simple_auth_manager_passwords.json.generated"
    while not passwords.exists() or not passwords.read_text().strip():
        time.sleep(1)
    ((user, password),) = list(json.loads(passwords.read_text()).items())[:1]
    place = f"http://127.0.0.1:{PORT}/dags/customer_support"
    print(f"\n  Airflow: {place}   user {user}   password {password}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
