"""The documentation is true: what it shows runs, and what it lists is what the code has.

Everything that needs Airflow (its import takes seconds) is done by one child process for all pages.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import airflow_ai_provider
from airflow_ai_provider.core import errors, policy
from airflow_ai_provider.core.audit.trail.schema import ACTIONS
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, Settled, open_attempts, settle
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import budget_period
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.reconcile.invoices import FORMATS
from airflow_ai_provider.core.ledger.reconcile.report import FindingKind
from airflow_ai_provider.core.ledger.reports.reprice import read_price_list
from airflow_ai_provider.core.ledger.reviews import ReviewItem, open_reviews
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_budgets, llm_cost_daily, metadata
from airflow_ai_provider.get_provider_info import get_provider_info
from airflow_ai_provider.testing.behaviour import Behaviour, Fault

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PACKAGE = Path(airflow_ai_provider.__path__[0])
PAGES = sorted(DOCS.rglob("*.md"))
QUERIES = sorted((ROOT / "include" / "sql").glob("*.sql"))
OPERATORS = {
    "llm_map": "operators.llm.LLMMapOperator",
    "task_llm_map": "decorators.llm_map._LLMMapDecoratedOperator",
    "embed_sync": "operators.vectors.EmbedSyncOperator",
    "retrieve": "operators.vectors.RetrieveOperator",
    "gather": "operators.rows.GatherOperator",
    "plan_shards": "operators.rows.PlanShardsOperator",
    "mask_rows": "operators.privacy.MaskRowsOperator",
    "restore_rows": "operators.privacy.RestoreRowsOperator",
    "encrypt_columns": "operators.privacy.EncryptColumnsOperator",
    "decrypt_columns": "operators.privacy.DecryptColumnsOperator",
    "audit_seal": "operators.audit.AuditSealOperator",
    "audit_verify": "operators.audit.AuditVerifyOperator",
    "ledger_reconcile": "operators.ledger.LedgerReconcileOperator",
    "sweep_holds": "operators.budgets.SweepHoldsOperator",
    "budget_sensor": "sensors.budget.BudgetSensor",
    "cost_report": "operators.cost.CostReportOperator",
    "ledger_maintenance": "operators.ledger.LedgerMaintenanceOperator",
    "ledger_export": "operators.ledger.LedgerExportOperator",
}
SECTIONS: dict[str, type[BaseModel]] = {
    "The file": policy.Policy,
    "deployments": policy.Deployment,
    "price": policy.Price,
    "above": policy.PriceAbove,
    "routes": policy.Route,
    "complexity": policy.Complexity,
    "rules": policy.Rule,
    "tier_options": policy.TierOptions,
    "classification": policy.Classification,
    "escalate": policy.Escalate,
    "reuse": policy.Reuse,
    "retry": policy.Retry,
    "deadline": policy.Deadline,
    "breaker": policy.Breaker,
    "attachments": policy.Attachments,
    "budgets": policy.Budget,
    "masking": policy.MaskingProfile,
    "privacy": policy.Privacy,
    "grants": policy.Grant,
    "ledger": policy.LedgerRules,
    "teams": policy.Team,
}

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    info: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(info: str) -> list[Block]:
    """The blocks of all pages whose info string is ``info``, or begins with it and a blank."""
    found = []
    for page in [*PAGES, ROOT / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            if match["info"] == info or match["info"].startswith(f"{info} "):
                found.append(Block(page, text.count("\n", 0, match.start()) + 1, match["info"], match["text"]))
    return found


def section(page: Path, heading: str) -> str:
    """What stands under a heading, down to the next one."""
    parts = re.split(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


def table(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose first column is called ``first``; code marks are taken off the first cell."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        rows.append([cells[0].strip("| `"), *cells[1:]])
    return rows


def commands() -> list[tuple[str, str]]:
    """(place, command line) of every ``airflow ai`` command in the pages."""
    return [
        (str(block), line.strip())
        for block in blocks("bash")
        for line in block.text.splitlines()
        if re.match(r"\s*airflow (ai|connections) ", line)
    ]


def environment() -> dict[str, str]:
    """What docs/connections.md tells to export."""
    text = "\n".join(block.text for block in blocks("bash") if block.page.name == "connections.md")
    return {name: value.strip("'") for name, value in re.findall(r"^export (\w+)=(.+)$", text, re.MULTILINE)}


# Blocks that stand alone


@pytest.mark.parametrize("block", blocks("yaml policy"), ids=str)
def test_every_policy_is_valid(block: Block) -> None:
    policy.parse_policy(block.text, str(block))


@pytest.mark.parametrize("block", blocks("yaml prices"), ids=str)
def test_every_price_list_is_valid(block: Block, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(block.text)
    assert read_price_list(tmp_path / "prices.yaml").models


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_block_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_every_json_block_is_json(block: Block) -> None:
    json.loads(block.text)


def test_every_fence_is_closed() -> None:
    for page in PAGES:
        assert len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)) % 2 == 0, page


@pytest.mark.parametrize("block", blocks("python pytest"), ids=str)
def test_every_example_of_a_test_passes(block: Block, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    tests = [test for name, test in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test(tmp_path)


# Links and files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for match in _LINK.finditer(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {match['target']}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: no heading {match['target']}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_names_every_page() -> None:
    linked = {match["target"] for match in _LINK.finditer((DOCS / "index.md").read_text(encoding="utf-8"))}
    pages = {str(page.relative_to(DOCS)) for page in PAGES if page.parent.name != "decisions"} - {"index.md"}
    assert pages <= linked


def test_the_index_of_decisions_names_every_area() -> None:
    index = DOCS / "decisions" / "index.md"
    linked = {match["target"] for match in _LINK.finditer(index.read_text(encoding="utf-8"))}
    assert linked == {page.name for page in index.parent.glob("*.md")} - {"index.md"}


def test_every_make_target_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE))
    assert named
    assert named <= targets


def test_the_floors_are_those_that_are_enforced() -> None:
    layers = re.findall(r"^    (.*airflow_ai_provider\.\w+.*)$", layer_lines(), re.MULTILINE)
    shown = table(section(DOCS / "architecture.md", "The floors"), "floor")
    assert [set(_CODE.findall(cells[1])) for cells in shown] == [
        set(re.findall(r"airflow_ai_provider\.([\w.]+)", line)) for line in layers
    ]


def layer_lines() -> str:
    text = (ROOT / "setup.cfg").read_text()
    return text[text.index("layers =") : text.index("# A type in an annotation")]


# Operators


def test_every_public_operator_has_a_page() -> None:
    names = {
        name
        for file in (PACKAGE / "operators").glob("*.py")
        for name in re.findall(r"^class ([A-Z]\w+)\((?:AIBaseOperator|_RowsOperator)\)", file.read_text(), re.MULTILINE)
    }
    assert names == {path.rpartition(".")[2] for path in OPERATORS.values() if path.startswith("operators.")}


@pytest.mark.parametrize("page", sorted((DOCS / "operators").glob("*.md")), ids=lambda page: page.name)
def test_every_error_that_is_named_exists(page: Path) -> None:
    others = {"ValueError", "TypeError", "KeyError", "AirflowException", "AirflowFailException"}
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+(?:Error|Unavailable|Exception))`", text))
    assert {name for name in named - others if not hasattr(errors, name)} == set()


# Policy and configuration


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_policy_key_is_in_its_table(heading: str) -> None:
    """Names and defaults. ``none`` is a default of null; "see below" a section with defaults of its own."""
    expected = {
        field.alias or name: shown_default(field.get_default(call_default_factory=True))
        for name, field in SECTIONS[heading].model_fields.items()
    }
    rows = table(section(DOCS / "policy.md", heading), "key")
    assert {row[0]: row[1] for row in rows} == expected


def shown_default(value: Any) -> str:
    match value:
        case _ if value is PydanticUndefined:
            return "required"
        case None:
            return "none"
        case BaseModel():
            return "see below"
        case tuple():
            return f"`[{', '.join(map(str, value))}]`"
        case _:
            return f"`{value}`"


def test_every_check_and_kind_of_the_policy_is_explained() -> None:
    checks = SECTIONS["escalate"].model_json_schema()["properties"]["on"]["items"]["enum"]
    assert {row[0] for row in table(section(DOCS / "policy.md", "escalate"), "check")} == set(checks)
    kinds = SECTIONS["masking"].model_json_schema()["properties"]["detect"]["items"]["enum"]
    assert {row[0] for row in table(section(DOCS / "privacy.md", "What is masked"), "kind")} == set(kinds)
    detect = next(row for row in table(section(DOCS / "policy.md", "masking"), "key") if row[0] == "detect")
    assert set(_CODE.findall(detect[2])) == set(kinds)


def test_every_option_is_in_the_page_with_its_variable() -> None:
    options = get_provider_info()["config"]["ai"]["options"]
    rows = table(section(DOCS / "connections.md", "[ai]"), "option")
    assert [(row[0], row[1]) for row in rows] == [(name, f"`AIRFLOW__AI__{name.upper()}`") for name in options]


def test_every_field_of_the_connection_is_in_the_page() -> None:
    (connection,) = get_provider_info()["connection-types"]
    rows = table(section(DOCS / "connections.md", "The llm connection"), "field in the form")
    labels = {row[0] for row in rows}
    assert labels >= set(connection["ui-field-behaviour"]["relabeling"].values())
    assert labels >= {field["label"] for field in connection["conn-fields"].values()}


# Tables


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with some of everything in it."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with Ledger.open(url) as opened:
        fill(opened)
        yield opened


def fill(ledger: Ledger) -> None:
    now = datetime(2025, 1, 31, 12, tzinfo=UTC)
    task = TaskRef("support", "customer_support", "run-1", "answer", 0, 1)
    budget = policy.Budget(team="support", period="day", limit_usd="100")
    period = budget_period(budget, now=now, dag_id=task.dag_id, run_id=task.run_id)

    def request(number: int) -> Request:
        names = ("support", "simple", "small", "openai/gpt-4o-mini", "openai", "policy-0")
        passed_over = {"fallback_from": "house", "fallback_reason": "circuit_open"} if number else {}
        return Request(f"request-{number}", task, f"row-{number}", *names, routed_by="column", **passed_over)

    attempts = [OpenAttempt(f"attempt-{n}", "hold", 1000, now, request(n)) for n in range(4)]
    settled = [
        Settled("attempt-0", now, request(0), "ok", Usage(100, 20), 700, latency_ms=300, baseline_nano=7000),
        Settled("attempt-1", now, request(1), "error", Usage(0, 0), error_type="rate_limited"),
        Settled("attempt-2", now, request(2), "unknown", None, cost_nano=1000, error_type="timeout"),
        Settled("reused-1", now, request(0), "reused", Usage(0, 0), saved_nano=700),
    ]
    with ledger.write() as conn:
        amounts = [1000] * len(attempts)
        take_hold(conn, hold_id="hold", owner="me", task=task, periods=[period], amounts=amounts, now=now)
        open_attempts(conn, attempts)
        settle(conn, settled, now)
        adjust(conn, settled[0], now)
        place = ("row-1", "support", "schema", "not JSON", "/answers")
        open_reviews(conn, [ReviewItem("item", "request-1", task, *place)], now)
        day = timedelta(days=1)
        conn.execute(sa.update(llm_budgets).values(starts_at=datetime.now(UTC) - day, ends_at=datetime.now(UTC) + day))


def adjust(conn: sa.Connection, item: Settled, now: datetime) -> None:
    """An invoice has charged a little more for one attempt."""
    task = item.request.task
    values = {
        "attempt_id": item.attempt_id,
        "invoice": "2025-01",
        "created_at": item.created_at,
        "adjusted_at": now,
        "team_id": task.team_id,
        "dag_id": task.dag_id,
        "model": item.request.model,
        "status": "ok",
        "delta_nano": 5,
    }
    conn.execute(sa.insert(llm_adjustments), values)
    day = llm_cost_daily.c
    conn.execute(sa.update(llm_cost_daily).values(cost_nano=day.cost_nano + 5, adjusted_nano=day.adjusted_nano + 5))


def made_for(path: Path, ledger: Ledger) -> bool:
    """Whether a query is for this database: ``x.sql`` is for both, ``x.sqlite.sql`` for one."""
    dialect = path.name.removesuffix(".sql").rpartition(".")[2] if path.name.count(".") > 1 else ""
    assert dialect in ("", "sqlite", "postgresql"), path.name
    return dialect in ("", ledger.engine.dialect.name)


def test_every_query_runs_and_finds_something(ledger: Ledger) -> None:
    """Those of the pages, and those of include/sql, on SQLite and PostgreSQL."""
    queries = {str(block): block.text for block in blocks("sql")}
    files = [path for path in QUERIES if made_for(path, ledger)]
    queries |= {path.name: path.read_text(encoding="utf-8") for path in files}
    assert len(queries) > len(files) > 0
    for name, query in queries.items():
        with ledger.read() as conn:
            rows = conn.exec_driver_sql(query.replace("%", "%%")).mappings().all()
        assert rows, name
        assert all(None not in row.values() for row in rows), f"{name}: {rows}"


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.name)
def test_every_query_says_its_question(path: Path) -> None:
    assert re.match(r"-- .+\?\n-- (SQLite and PostgreSQL|SQLite|PostgreSQL)\.", path.read_text(encoding="utf-8"))


def test_a_question_for_one_database_has_its_twin_for_the_other() -> None:
    names = {path.name for path in QUERIES}
    for name in names:
        assert name.replace(".sqlite.", ".postgresql.") in names
        assert name.replace(".postgresql.", ".sqlite.") in names


def test_every_column_is_in_the_page(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as opened:
        found = sa.inspect(opened.engine)
        columns = {
            name: [str(column["name"]) for column in found.get_columns(name)]
            for name in [*found.get_table_names(), *found.get_view_names()]
        }
    del columns["ai_ledger_version"]
    assert columns.keys() >= metadata.tables.keys()
    for name, expected in columns.items():
        rows = table(section(DOCS / "tables.md", name), "column")
        assert {row[0] for row in rows} == set(expected), name


# Names that the code gives out


def test_every_finding_of_the_audit_is_explained() -> None:
    names = ("verify", "manifests", "segments", "compare_with_ledger")
    files = [PACKAGE / "core" / "audit" / "verify" / f"{name}.py" for name in names]
    source = "\n".join(file.read_text() for file in files)
    given = set(re.findall(r'(?:report\.find\(|_find\(report,|return)\s*"(\w+_\w+)"', source))
    given |= {"segment_altered", "segment_sealed_broken"}
    rows = table(section(DOCS / "audit.md", "Findings"), "kind")
    assert {row[0] for row in rows} == given
    assert all(f'"{kind}"' in source for kind in given)


def test_every_finding_of_a_reconciliation_is_explained() -> None:
    rows = table(section(DOCS / "money.md", "Reconcile with an invoice"), "finding")
    assert [row[0] for row in rows] == list(get_args(FindingKind))
    formats = table(section(DOCS / "money.md", "Reconcile with an invoice"), "format")
    assert [row[0] for row in formats] == list(FORMATS)


def test_every_action_of_the_audit_is_explained() -> None:
    rows = table(section(DOCS / "audit.md", "What an event says"), "action")
    assert {row[0]: row[1] for row in rows} == {action: said for action, (said, *_) in ACTIONS.items()}


def test_every_kind_of_error_is_one_that_the_gateway_gives() -> None:
    rows = table(section(DOCS / "sources-and-sinks.md", "Output columns").partition("Kinds in")[2], "kind")
    listed = {kind for row in rows for kind in re.findall(r"\w+", row[0])}
    folders = ("cache", "checks", "pipeline", "prompts", "providers", "ratelimit", "routing")
    source = "\n".join(file.read_text() for name in folders for file in (PACKAGE / "core" / name).rglob("*.py"))
    assert {kind for kind in listed if not re.search(rf'"{kind}[":]', source)} == set()
    given = set(re.findall(r'kind="(\w+)"', source)) | set(re.findall(r'\d{3}: "(\w+)"', source))
    assert given - listed == set()


def test_every_setting_and_fault_of_the_double_is_in_its_page() -> None:
    page = DOCS / "testing-your-dags.md"
    settings = {row[0] for row in table(section(page, "Settings"), "setting")}
    assert settings == set(Behaviour.__dataclass_fields__)
    faults = table(section(page, "Settings"), "charged")
    named = [name for row in faults for name in _CODE.findall(row[1])]
    assert sorted(named) == sorted(fault.value for fault in Fault)


# What needs Airflow: one child process for all of it

_CHILD = """
import contextlib, importlib, inspect, io, json, os, shlex, sys
from pathlib import Path

given = json.load(sys.stdin)
from airflow.cli.cli_parser import get_parser
from airflow.dag_processing.dagbag import DagBag

found = {"dags": {}, "commands": {}, "leaves": {}, "operators": {}}
for page, place in given["operators"].items():
    module, _, name = place.rpartition(".")
    operator = getattr(importlib.import_module(f"airflow_ai_provider.{module}"), name)
    own = inspect.signature(operator.__init__).parameters.values() if "__init__" in vars(operator) else ()
    own = {p.name: None if p.default is p.empty else repr(p.default) for p in own if p.kind is p.KEYWORD_ONLY}
    found["operators"][page] = {"parameters": own, "templated": sorted(set(operator.template_fields) & set(own))}
for path in sorted(Path(given["folder"]).glob("*.py")):
    bag = DagBag(str(path))
    found["dags"][path.name] = {"errors": list(bag.import_errors.values()), "dags": sorted(bag.dags)}

parser = get_parser()
for place, line in given["commands"]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parser.parse_args(shlex.split(line, comments=True)[1:])
            found["commands"][f"{place} {line}"] = ""
        except SystemExit:
            found["commands"][f"{place} {line}"] = said.getvalue()

from airflow_ai_provider.cli.definition import get_cli_commands

def walk(command, path):
    path = f"{path} {command.name}"
    for sub in getattr(command, "subcommands", ()):
        walk(sub, path)
    if hasattr(command, "args"):
        found["leaves"][path] = [flag for arg in command.args for flag in arg.flags if flag.startswith("--")]

for command in get_cli_commands():
    walk(command, "airflow")

os.environ.update(given["environment"])
from airflow_ai_provider.hooks.settings import settings_from_airflow

settings = settings_from_airflow()
found["settings"] = {
    "home": str(settings.home),
    "policy_path": str(settings.policy_path),
    "ledger_url": settings.ledger_url,
    "cache_url": settings.cache_url,
    "vectors_uri": settings.vectors_uri,
    "vectors_token": settings.vectors_token,
    "keyring": dict(settings.keyring or {}),
    "api_base": settings.endpoint("house_model").api_base,
    "api_key": settings.endpoint("openai_default").api_key,
}
Path(given["result"]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow makes of the DAGs, commands and environment variables in the pages."""
    home = tmp_path_factory.mktemp("docs")
    for number, block in enumerate(dag_blocks()):
        (home / f"dag_{number}.py").write_text(block.text)
    keyring = {"version": 1, "active": "k1", "keys": {"k1": {"secret": "A" * 43 + "="}}}
    connection = json.dumps({"conn_type": "generic", "password": json.dumps(keyring)})
    given = {
        "folder": str(home),
        "commands": commands(),
        "operators": OPERATORS,
        # The keyring's connection is added by a command in the page.
        "environment": {**environment(), "AIRFLOW_CONN_AI_KEYRING": connection},
        "result": str(home / "result.json"),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps(given),
        env={**inherited, "AIRFLOW_HOME": str(home / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    result: dict[str, Any] = json.loads((home / "result.json").read_text())
    return result


def dag_blocks() -> list[Block]:
    return [block for block in blocks("python") if "@dag" in block.text]


def test_every_dag_loads(seen: dict[str, Any]) -> None:
    assert len(seen["dags"]) == len(dag_blocks()) > len(OPERATORS)
    for number, block in enumerate(dag_blocks()):
        loaded = seen["dags"][f"dag_{number}.py"]
        assert loaded["errors"] == [], f"{block}: {loaded['errors']}"
        assert loaded["dags"], f"{block}: no DAG in it"


@pytest.mark.parametrize("page", OPERATORS)
def test_every_parameter_is_in_its_page(seen: dict[str, Any], page: str) -> None:
    """Names, defaults, and what is templated."""
    operator = seen["operators"][page]
    expected = {name: f"`{default}`" if default else "required" for name, default in operator["parameters"].items()}
    rows = table(section(DOCS / "operators" / f"{page}.md", "Parameters"), "parameter")
    assert {row[0]: row[2] for row in rows} == expected
    templated = sorted(row[0] for row in rows if row[3].endswith("Templated"))
    assert templated == (operator["templated"] if page != "task_llm_map" else ["op_args", "op_kwargs"])


def test_every_command_is_one_that_airflow_parses(seen: dict[str, Any]) -> None:
    assert len(seen["commands"]) >= len(seen["leaves"])
    assert {line: said for line, said in seen["commands"].items() if said} == {}


def test_every_command_and_its_options_are_in_the_page(seen: dict[str, Any]) -> None:
    for command, flags in seen["leaves"].items():
        text = section(DOCS / "cli.md", command)
        assert command in "\n".join(line for _, line in commands())
        common = {"--output", "--verbose"}
        rows = table(text, "option") if "| option |" in text else []
        assert {row[0] for row in rows} == set(flags) - common
        assert common <= set(flags)


def test_the_worked_example_leads_to_the_real_services(seen: dict[str, Any]) -> None:
    assert seen["settings"] == {
        "home": "/var/lib/airflow/ai",
        "policy_path": "/opt/airflow/include/policy.yaml",
        "ledger_url": "postgresql+psycopg://airflow_ai:ledger-password@db.internal:5432/airflow_ai?sslmode=require",
        "cache_url": "rediss://:redis-password@redis.internal:6379/2",
        "vectors_uri": "http://milvus.internal:19530",
        "vectors_token": "airflow:milvus-password",
        "keyring": {"version": 1, "active": "k1", "keys": {"k1": {"secret": "A" * 43 + "="}}},
        "api_base": "https://models.internal/v1",
        "api_key": "sk-your-key",
    }


def test_every_variable_is_one_that_is_read() -> None:
    options = {f"AIRFLOW__AI__{name.upper()}" for name in get_provider_info()["config"]["ai"]["options"]}
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"AIRFLOW__AI__[A-Z_]+", text)) <= options
