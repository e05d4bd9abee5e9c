"""Run the ``customer_support`` DAG once, in one process, and show what came of it.

No server, key or account: Airflow runs on SQLite, everything else on the embedded defaults. Reads two environment
variables: ``INPUT``, a CSV, JSONL or Parquet file of questions with a column ``text``, and ``DEMO_HOME`` (default
``.demo``), the folder of everything the demo makes.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
import textwrap
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "include" / "inquiries.csv"
DAG_ID = "customer_support"

_TASK = re.compile(r"\[DAG TEST\] starting task_id=(\w+)")
_ROWS = re.compile(r"([\d,]+/[\d,]+ rows \(\d+%\) · .*?)(?: +\[|$)")
_ERROR = re.compile(r"(?:AirflowFailException|AirflowException): (.+)")


def main() -> int:
    home = Path(os.environ.get("DEMO_HOME") or REPOSITORY / ".demo").expanduser().absolute()
    source = Path(os.environ.get("INPUT") or SAMPLE).expanduser().absolute()
    if not source.exists():
        print(f"INPUT={source}: there is no such file; expected CSV, JSONL or Parquet with a column text")
        return 1
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"DEMO_HOME={home}: cannot be made: {error.strerror}")
        return 1
    log_path = home / "demo.log"
    configure(home)
    print(f"Answering the questions of {source}\nLog: {log_path}")
    try:
        with output_to(log_path) as screen, progress(log_path, screen):
            run_id = run_dag(source, home)
    except KeyboardInterrupt:
        print("Stopped; what was answered is kept, and asked for again it costs nothing")
        return 130
    if run_id is None:
        print(f"The run failed: {reason(log_path)}\nThe log has the rest: {log_path}")
        return 1
    show(run_id, home / "answers")
    return 0


def configure(home: Path) -> None:
    """Airflow's configuration, by environment alone; what the caller's own Airflow may have set does not count."""
    for name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_"))]:
        del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=str(home / "airflow"),
        AIRFLOW__CORE__DAGS_FOLDER=str(REPOSITORY / "dags"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__AI__HOME=str(home / "ai"),
        AIRFLOW__AI__POLICY_PATH=str(REPOSITORY / "include" / "policy.yaml"),
    )


@contextmanager
def output_to(log_path: Path) -> Iterator[IO[str]]:
    """Everything that anybody prints goes to the log; yields what is left of the screen."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with log_path.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with os.fdopen(os.dup(kept[0]), "w") as screen:
        try:
            yield screen
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, fd in enumerate(kept, start=1):
                os.dup2(fd, number)
                os.close(fd)


@contextmanager
def progress(log_path: Path, screen: IO[str]) -> Iterator[None]:
    """One line that says what is going on, read from the log as it grows."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(log_path, screen, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(log_path: Path, screen: IO[str], done: threading.Event) -> None:
    started, shown, task, rows = time.monotonic(), "", "starting Airflow", ""
    redrawn = screen.isatty()
    with log_path.open(errors="replace") as log:
        while True:
            last = done.wait(0.3)
            for line in log:
                if found := _TASK.search(line):
                    task, rows = found[1].replace("_", " "), ""
                elif found := _ROWS.search(line):
                    rows = f": {found[1]}"
            text = f"{task}{rows}"
            if redrawn:
                columns = shutil.get_terminal_size().columns
                screen.write(f"\r\033[K{f'[{time.monotonic() - started:3.0f} s] {text}'[: columns - 1]}")
            elif text != shown:
                screen.write(f"[{time.monotonic() - started:3.0f} s] {text}\n")
            shown = text
            screen.flush()
            if last:
                screen.write("\n" if redrawn else "")
                return


def initialise(home: Path) -> None:
    """Airflow's own database, once for each version of Airflow."""
    from airflow import __version__
    from airflow.utils.db import initdb

    marker = home / "airflow" / ".initialised"
    if marker.exists() and marker.read_text() == __version__:
        return
    initdb()
    marker.write_text(__version__)


def run_dag(source: Path, home: Path) -> str | None:
    """The id of the run, or ``None`` where it failed; the log says why."""
    try:
        initialise(home)
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(REPOSITORY / "dags" / f"{DAG_ID}.py")
        run = bag.dags[DAG_ID].test(run_conf={"input": str(source), "output": str(home / "answers")})
    except Exception:  # noqa: BLE001 - whatever it is, it belongs into the log and not onto the screen
        traceback.print_exc()
        return None
    return str(run.run_id) if run.state == "success" else None


def reason(log_path: Path) -> str:
    """The last error that a task ended with."""
    found = _ERROR.findall(log_path.read_text(errors="replace"))
    return str(found[-1]).strip() if found else "no task says why, so Airflow itself may not have started"


def show(run_id: str, answers: Path) -> None:
    from airflow_ai_provider.core.administration.audit import verify_audit
    from airflow_ai_provider.core.ledger import open_ledger
    from airflow_ai_provider.core.ledger.reports.costs import cost_report
    from airflow_ai_provider.core.rows.manifest import read_manifest
    from airflow_ai_provider.hooks.context import run_folder
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.operators.cost import text_table

    settings = settings_from_airflow()
    folder = answers / run_folder(run_id)
    manifest = read_manifest(str(folder / "answers"))
    assert manifest is not None, "a run that succeeded has a manifest"
    with open_ledger(settings.ledger_url, settings.home) as ledger:
        costs = cost_report(ledger, by=["team", "model"])
    verdict = verify_audit(settings)
    counts = manifest.totals
    other = {name: counts[name] for name in ("rejected", "over_budget", "error") if counts[name]}
    print("\nCost of all runs in this home, in USD at the policy's prices\n" + textwrap.indent(text_table(costs), "  "))
    print(
        f"\nAudit trail: {'verifies' if verdict.status == 0 else 'DOES NOT VERIFY'}, {verdict.events:,} events"
        f" in {verdict.segments} segments, {len(verdict.findings)} findings {verdict.error}".rstrip()
    )
    print(
        f"Rows: {counts['rows']:,}; answered {counts['ok']:,}, of them reused {counts['reused']:,}"
        + "".join(f"; {name.replace('_', ' ')} {count:,}" for name, count in other.items())
    )
    print(f"Answers: {folder / 'answers.csv'}")
    if problem := _first_problem(folder / "answers.csv"):
        print(f"The first row without an answer says: {problem}")
    for row in _samples(folder / "answers.csv"):
        print(_indented("Q", row["text"]), _indented("A", row["answer"]), sep="\n")
    print(
        "\nLook around with `airflow ai cost`, `airflow ai policy check`, `airflow ai audit verify`,\n"
        f"or see what asking again would cost with `airflow ai plan {DAG_ID} --input {folder / 'questions'}`, after:\n"
        f'  export PATH="{Path(sys.executable).parent}:$PATH" AIRFLOW_HOME="{os.environ["AIRFLOW_HOME"]}" \\\n'
        f'    AIRFLOW__AI__HOME="{settings.home}" AIRFLOW__AI__POLICY_PATH="{settings.policy_path}" \\\n'
        f'    AIRFLOW__CORE__DAGS_FOLDER="{os.environ["AIRFLOW__CORE__DAGS_FOLDER"]}"'
    )


def _first_problem(path: Path) -> str | None:
    with path.open(newline="", encoding="utf-8") as file:
        return next((row["error"] for row in csv.DictReader(file) if row["error"]), None)


def _samples(path: Path, count: int = 2) -> Sequence[dict[str, str]]:
    """The first answered rows, of different languages where there is a column that tells."""
    found: dict[str, dict[str, str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if row["status"] == "ok":
                found.setdefault(row.get("language") or str(number), row)
            if len(found) == count:
                break
    return list(found.values())


def _indented(label: str, text: str) -> str:
    short = textwrap.shorten(text, 400, placeholder=" …")
    return textwrap.fill(
        short, 100, initial_indent=f"\n  {label}: " if label == "Q" else f"  {label}: ", subsequent_indent="     "
    )


if __name__ == "__main__":
    sys.exit(main())
