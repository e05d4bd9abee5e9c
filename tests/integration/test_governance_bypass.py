"""Ways around the governing policy, as a DAG's author or another user would try them, and what each gets.

Two real HTTP vendors stand for the one that the policy names and for any other place; what reached them says what left.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
import yaml
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_ai_provider.core.administration.budgets import resume_deployment, set_budget
from airflow_ai_provider.core.administration.ledger import pin_policy, pinned_policies, reconcile_invoice, unpin_policy
from airflow_ai_provider.core.administration.people import current_person
from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.budgets.limits import limit_history
from airflow_ai_provider.core.ledger.schema import llm_budgets, llm_requests
from airflow_ai_provider.core.policy import Budget, load_policy
from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.decorators.llm_map import llm_map_task
from airflow_ai_provider.errors import AIProviderError, PermanentError, PolicyError, SourceError
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.operators.ledger import LedgerReconcileOperator
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.operators.privacy import (
    DecryptColumnsOperator,
    EncryptColumnsOperator,
    MaskRowsOperator,
    RestoreRowsOperator,
)
from airflow_ai_provider.sensors.budget import BudgetSensor
from airflow_ai_provider.testing.vendor import VendorDouble
from airflow_ai_provider.triggers.budget import BudgetTrigger

PRIVATE = "maria.lopez@mail.example"
REFUSED = "a task may not bring its own policy file"
Change = Callable[[dict[str, Any]], Any]


@dataclass
class Place:
    """An installation, its vendor, and another place that no policy names."""

    folder: Path
    vendor: VendorDouble
    elsewhere: VendorDouble
    monkeypatch: pytest.MonkeyPatch

    def option(self, name: str, value: object) -> None:
        self.monkeypatch.setenv(f"AIRFLOW__AI__{name.upper()}", str(value))

    def policy(self, change: Change = lambda _: None, name: str = "policy.yaml") -> Path:
        """Write the governing policy with a change."""
        price = {"input_per_mtok": 0.15, "output_per_mtok": 0.6}
        small = {"model": "openai/double", "api_base": self.vendor.base_url, "price": price, "connection": "vendor"}
        made: dict[str, Any] = {
            "version": 1,
            "deployments": {"small": small},
            "routes": {
                "support": {"tiers": {"simple": ["small"]}, "masking": "standard", "max_tokens": 64},
                "raw": {"tiers": {"simple": ["small"]}, "masking": "off", "max_tokens": 64},
            },
            "budgets": [
                {"team": "support", "period": "total", "limit_usd": 0.5},
                {"period": "total", "limit_usd": 1},
            ],
            "masking": {"standard": {"detect": ["email"]}},
            "privacy": {"restore": [{"dag": "governed", "team": "support"}]},
        }
        change(made)
        path = self.folder / name
        path.write_text(yaml.safe_dump(made))
        return path

    def ask(self, dag_id: str = "governed", **changes: Any) -> dict[str, Any]:
        """Run a task that asks for one row with an e-mail address in it."""
        return task(self.folder, **changes).execute(context(dag_id, str(changes.get("sink", ""))))  # type: ignore[no-any-return]

    def limits(self, home: str = "ai") -> dict[str, float]:
        """USD by budget."""
        with open_ledger(None, self.folder / home) as ledger, ledger.read() as conn:
            return {row.name: float(row.limit_nano) / 1e9 for row in conn.execute(sa.select(llm_budgets))}

    def history(self) -> list[dict[str, Any]]:
        with open_ledger(None, self.folder / "ai") as ledger, ledger.read() as conn:
            return limit_history(conn)

    def events(self, action: str) -> list[dict[str, Any]]:
        spool = self.folder / "ai" / "audit" / "spool"
        lines = [line for path in sorted(spool.rglob("*")) if path.is_file() for line in path.read_text().splitlines()]
        found = [json.loads(line) for line in lines if f'"{action}"' in line]
        return [event for event in found if event.get("event.action") == action]

    @property
    def sent(self) -> str:
        """Every text that reached a vendor."""
        return " ".join(
            text for one in (self.vendor, self.elsewhere) for request in one.requests() for text in request.texts()
        )

    def assert_nothing_left(self) -> None:
        assert (self.vendor.requests(), self.elsewhere.requests()) == ([], [])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": 1, "text": f"Please write to {PRIVATE}."}) + "\n")
    with VendorDouble() as vendor, VendorDouble() as elsewhere:
        made = Place(tmp_path, vendor, elsewhere, monkeypatch)
        made.option("home", tmp_path / "ai")
        made.option("policy_path", made.policy())
        monkeypatch.setenv("AIRFLOW_CONN_VENDOR", '{"conn_type": "llm", "password": "key-1"}')
        monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
        monkeypatch.delenv("AIRFLOW_CTX_DAG_ID", raising=False)
        yield made


def context(dag_id: str, run_id: str = "") -> Any:
    ti = types.SimpleNamespace(dag_id=dag_id, run_id=f"r{run_id}", task_id="t", map_index=None, try_number=1)
    return {"ti": ti, "run_id": ti.run_id, "dag_run": None}


def task(folder: Path, **changes: Any) -> LLMMapOperator:
    given = {
        "task_id": "t",
        "source": str(folder / "rows.jsonl"),
        "sink": str(folder / "out"),
        "prompt": "{{ text }}",
        "key": "id",
        "team": "support",
        "route": "support",
        **changes,
    }
    return LLMMapOperator(**given)


def in_route(**changes: Any) -> Change:
    return lambda policy: policy["routes"]["support"].update(changes)


def limit(usd: float) -> Change:
    return lambda policy: policy["budgets"][0].update(limit_usd=usd)


# -- the policy argument


def set_later(place: Place, path: str) -> Any:
    operator = task(place.folder)
    operator.policy = path
    return operator.execute(context("governed"))


def decorated(place: Place, path: str) -> Any:
    with DAG("governed"):
        made = llm_map_task(
            lambda row: row["text"],
            task_id="t",
            key="id",
            team="support",
            route="support",
            source=str(place.folder / "rows.jsonl"),
            sink=str(place.folder / "out"),
            policy=path,
        )()
    return made.operator.execute(context("governed"))


def mapped(place: Place, path: str) -> Any:
    with DAG("governed"):
        arguments = {"task_id": "t", "prompt": "{{ text }}", "key": "id", "team": "support", "route": "support"}
        places = {"source": str(place.folder / "rows.jsonl"), "sink": str(place.folder / "out")}
        many = LLMMapOperator.partial(**arguments, **places).expand(policy=[path])
    return many.unmap({"policy": path}).execute(context("governed"))


def rendered_from_conf(place: Place, path: str) -> Any:
    operator = task(place.folder, policy="{{ dag_run.conf['policy'] }}")
    operator.render_template_fields({"dag_run": types.SimpleNamespace(conf={"policy": path})})
    return operator.execute(context("governed"))


def sensing(place: Place, path: str, **changes: Any) -> Any:
    arguments = {"task_id": "s", "team": "support", "route": "support", "room_usd": 0.1, "policy": path}
    return BudgetSensor(**arguments, **changes).execute(context("governed"))


POLICY_ARGUMENT: dict[str, Callable[[Place, str], Any]] = {
    "operator": lambda place, path: place.ask(policy=path),
    "attribute set later": set_later,
    "decorator": decorated,
    "mapped": mapped,
    "rendered from the run's conf": rendered_from_conf,
    "sensor": sensing,
    "sensor that pokes": lambda place, path: sensing(place, path, deferrable=False),
    "after an approval": lambda place, path: task(place.folder, policy=path).resume_decided(
        context("governed"), {}, {"chosen_options": ["Approve"]}
    ),
    "after a wait": lambda place, path: task(place.folder, policy=path).resume(
        context("governed"), {"status": "room"}, cost_usd="0"
    ),
}


@pytest.mark.parametrize("way", POLICY_ARGUMENT)
def test_a_policy_argument_is_refused_with_what_to_do(place: Place, way: str) -> None:
    own = place.policy(lambda policy: (in_route(masking="off")(policy), limit(1e6)(policy)), "own.yaml")
    with pytest.raises(AirflowFailException, match=REFUSED) as refused:
        POLICY_ARGUMENT[way](place, str(own))
    assert "Remove the argument" in str(refused.value)
    assert "[ai] allow_dag_policy = True" in str(refused.value)
    place.assert_nothing_left()
    assert not (place.folder / "ai" / "ledger.db").exists(), "before anything is opened"


@pytest.mark.parametrize("way", [way for way in POLICY_ARGUMENT if way != "after an approval"])
def test_where_a_policy_argument_is_allowed_it_cannot_loosen(place: Place, way: str) -> None:
    place.option("allow_dag_policy", True)
    own = place.policy(lambda policy: (in_route(masking="off")(policy), limit(1e6)(policy)), "own.yaml")
    with pytest.raises(AirflowFailException) as refused:
        POLICY_ARGUMENT[way](place, str(own))
    assert "routes.support.masking: off, where the governing route masks" in str(refused.value)
    assert "budgets.0.limit_usd: 1000000" in str(refused.value)
    place.assert_nothing_left()


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_triggers_stored_arguments_are_no_way_around(place: Place, allowed: bool) -> None:
    place.option("allow_dag_policy", allowed)
    own = place.policy(limit(1e6), "own.yaml")
    stored = {"team": "support", "dag_id": "governed", "run_id": "r", "route": "support", "wanted_nano": 9 * 10**14}
    (event,) = [event async for event in BudgetTrigger(**stored, policy=str(own)).run()]
    assert event.payload["status"] == "error"
    assert ("budgets.0.limit_usd" if allowed else REFUSED) in event.payload["message"]


def link(place: Place, own: Path) -> str:
    (place.folder / "link.yaml").symlink_to(own)
    return str(place.folder / "link.yaml")


def relative(place: Place, own: Path) -> str:
    place.monkeypatch.chdir(place.folder)
    return own.name


def below_the_governing_name(place: Place, own: Path) -> str:
    (place.folder / "deep").mkdir()
    return str(own.rename(place.folder / "deep" / "policy.yaml"))


def dotted(place: Place, own: Path) -> str:
    return f"{place.folder}/policy.yaml/../{own.name}"


@pytest.mark.parametrize("spelling", [link, relative, below_the_governing_name, dotted])
def test_another_spelling_of_a_path_is_no_way_around(place: Place, spelling: Callable[[Place, Path], str]) -> None:
    own = place.policy(in_route(masking="off"), "own.yaml")
    with pytest.raises(AirflowFailException, match=REFUSED):
        place.ask(policy=spelling(place, own))
    place.assert_nothing_left()


def test_the_governing_file_by_another_name_is_the_governing_file(place: Place) -> None:
    assert place.ask(policy=link(place, place.folder / "policy.yaml"))["ok"] == 1
    assert PRIVATE not in place.sent


OTHER_ARGUMENTS: Sequence[Mapping[str, Any]] = (
    {"settings": None},
    {"masking": "off"},
    {"detect": []},
    {"budgets": []},
    {"price": {"input_per_mtok": 0}},
    {"api_base": "http://elsewhere/v1"},
    {"connection": "mine"},
    {"deployment": "small"},
)


@pytest.mark.parametrize("arguments", OTHER_ARGUMENTS, ids=lambda arguments: next(iter(arguments)))
def test_no_argument_hands_in_what_the_policy_decides(place: Place, arguments: Mapping[str, Any]) -> None:
    with pytest.raises((TypeError, AirflowException), match=next(iter(arguments))):
        task(place.folder, **arguments)


OPENING = {
    MaskRowsOperator: {"profile": "standard"},
    RestoreRowsOperator: {},
    EncryptColumnsOperator: {"columns": {"text": "encrypt"}, "table": "t"},
    DecryptColumnsOperator: {"columns": ["text"], "table": "t"},
}


@pytest.mark.parametrize("operator", OPENING)
def test_operators_that_open_rows_take_no_policy(place: Place, operator: Any) -> None:
    given = {"source": "s", "sink": "t", "key": "id", "team": "support", **OPENING[operator]}
    with pytest.raises((TypeError, AirflowException), match="policy"):
        operator(task_id="t", **given, policy="own.yaml")


# -- a file that narrows


def test_a_dags_own_budget_binds_that_dag_and_nobody_else(place: Place) -> None:
    place.option("allow_dag_policy", True)
    own = place.policy(limit(0.000001), "own.yaml")
    assert place.ask(policy=str(own), dag_id="own")["over_budget"] == 1
    place.assert_nothing_left()
    assert place.ask(sink=str(place.folder / "other"))["ok"] == 1
    limits = place.limits()
    (added,) = [name for name in limits if name.startswith("policy=own-")]
    assert added.endswith("&team=support/total")
    assert limits == {added: 0.000001, "team=support/total": 0.5, "organisation/total": 1}


def test_the_governing_budgets_apply_under_a_file_that_leaves_them_out(place: Place) -> None:
    place.option("allow_dag_policy", True)
    place.policy(limit(0.000001))
    own = place.policy(
        lambda policy: policy.update(budgets=[{"dag": "own", "period": "day", "limit_usd": 9}]), "own.yaml"
    )
    summary = place.ask(policy=str(own))
    assert summary["over_budget"] == 1
    place.assert_nothing_left()


def test_history_and_trail_say_which_file_set_a_limit(place: Place) -> None:
    place.option("allow_dag_policy", True)
    own = place.policy(limit(0.25), "own.yaml")
    place.ask(policy=str(own))
    governing = load_policy(place.folder / "policy.yaml").digest
    mine = load_policy(own).digest
    said = {(row["name"].partition("&")[0], row["policy_path"], row["policy_hash"]) for row in place.history()}
    in_trail = {
        (event["airflow_ai.budget"].partition("&")[0], event["airflow_ai.policy_path"], event["airflow_ai.policy_hash"])
        for event in place.events("budget.changed")
    }
    assert said == in_trail
    assert {(path, digest) for name, path, digest in said if name.startswith("policy=own-")} == {(str(own), mine)}
    assert {(path, digest) for name, path, digest in said if not name.startswith("policy=own-")} == {
        (str(place.folder / "policy.yaml"), governing)
    }
    (loaded,) = place.events("policy.loaded")
    assert loaded["airflow_ai.policy_hash"] == governing
    assert (loaded["airflow_ai.dag_policy_hash"], loaded["airflow_ai.dag_policy_path"]) == (mine, str(own))


def test_a_dags_own_profile_masks_more(place: Place) -> None:
    place.option("allow_dag_policy", True)
    own = place.policy(lambda policy: policy["routes"]["raw"].update(masking="standard"), "own.yaml")
    place.ask(policy=str(own), route="raw")
    assert PRIVATE not in place.sent


def test_prices_are_those_of_the_governing_policy(place: Place) -> None:
    place.option("allow_dag_policy", True)
    place.ask(policy=str(place.policy(limit(0.25), "own.yaml")))
    with open_ledger(None, place.folder / "ai") as ledger, ledger.read() as conn:
        (row,) = conn.execute(sa.select(llm_requests)).all()
    assert row.price_version == f"policy-{load_policy(place.folder / 'policy.yaml').digest[:12]}"


# -- another policy by the environment, or by writing the file


def through_the_environment(place: Place) -> None:
    place.option("policy_path", place.policy(in_route(masking="off"), "own.yaml"))


def by_writing_the_file(place: Place) -> None:
    place.policy(in_route(masking="off"))


def by_a_link_in_its_place(place: Place) -> None:
    own = place.policy(in_route(masking="off"), "own.yaml")
    (place.folder / "policy.yaml").unlink()
    (place.folder / "policy.yaml").symlink_to(own)


OTHER_POLICY = [through_the_environment, by_writing_the_file, by_a_link_in_its_place]


@pytest.mark.parametrize("way", OTHER_POLICY)
def test_a_policy_that_is_not_pinned_makes_no_call(place: Place, way: Callable[[Place], None]) -> None:
    pin_policy(settings_from_airflow(), caller=current_person("ada"), reason="reviewed")
    assert place.ask()["ok"] == 1
    place.vendor.reset()
    way(place)
    with pytest.raises(AirflowFailException, match=r"is not pinned in the ledger.*no call is made"):
        place.ask(sink=str(place.folder / "again"))
    with pytest.raises(AirflowFailException, match="is not pinned in the ledger"):
        BudgetSensor(task_id="s", team="support", route="support", room_usd=0.1).execute(context("governed"))
    with pytest.raises(AirflowFailException, match="is not pinned in the ledger"):
        restoring(place).execute(context("governed"))
    place.assert_nothing_left()


def restoring(place: Place) -> RestoreRowsOperator:
    return RestoreRowsOperator(
        task_id="t", source=str(place.folder / "rows.jsonl"), sink=str(place.folder / "open"), key="id", team="support"
    )


@pytest.mark.parametrize("way", OTHER_POLICY)
def test_without_a_pin_another_policy_leaves_its_digest_and_path(place: Place, way: Callable[[Place], None]) -> None:
    """A process can always be made to read another file; what it read is said where others read it."""
    way(place)
    assert place.ask()["ok"] == 1
    settings = settings_from_airflow()
    (loaded,) = place.events("policy.loaded")
    assert loaded["airflow_ai.policy_hash"] == load_policy(settings.policy_path).digest
    assert loaded["airflow_ai.policy_path"] == str(settings.policy_path)


def test_comments_and_order_of_a_pinned_policy_may_change(place: Place) -> None:
    pin_policy(settings_from_airflow(), caller=current_person("ada"), reason="reviewed")
    path = place.folder / "policy.yaml"
    path.write_text("# reviewed\n" + yaml.safe_dump(dict(reversed(list(yaml.safe_load(path.read_text()).items())))))
    assert place.ask()["ok"] == 1


def test_two_policies_are_accepted_while_a_new_one_is_rolled_out(place: Place) -> None:
    ada = current_person("ada")
    old = pin_policy(settings_from_airflow(), caller=ada, reason="first")
    place.policy(limit(0.4))
    new = pin_policy(settings_from_airflow(), caller=ada, reason="lower")
    assert place.ask()["ok"] == 1
    assert unpin_policy(settings_from_airflow(), old.digest[:12], caller=ada, reason="done") == old.digest
    place.policy()
    with pytest.raises(AirflowFailException, match="is not pinned"):
        place.ask(sink=str(place.folder / "again"))
    assert [
        (pin["policy_hash"], pin["pinned_by"], pin["reason"]) for pin in pinned_policies(settings_from_airflow())
    ] == [(new.digest, "ada", "lower")]
    assert len(place.events("policy.pinned")) == 2
    (taken,) = place.events("policy.unpinned")
    assert (taken["airflow_ai.policy_hash"], taken["user.name"]) == (old.digest, "ada")


@pytest.mark.parametrize("digest", ["", "0" * 12, "not a digest"])
def test_a_pin_that_is_none_cannot_be_taken_back(place: Place, digest: str) -> None:
    with pytest.raises(PermanentError, match="is no pinned policy"):
        unpin_policy(settings_from_airflow(), digest, caller=current_person("ada"), reason="x")


def test_settings_handed_to_the_gateway_meet_the_pin(place: Place) -> None:
    pin_policy(settings_from_airflow(), caller=current_person("ada"), reason="reviewed")
    own = place.policy(in_route(masking="off"), "own.yaml")
    settings = replace(settings_from_airflow(), policy_path=own)
    job = MapJob(str(place.folder / "rows.jsonl"), str(place.folder / "out"), "{{ text }}", "id", "support", "support")
    with pytest.raises(PolicyError, match="is not pinned"):
        run_map(job, Caller("governed", "r", "t"), settings, log=quiet())
    place.assert_nothing_left()


def quiet() -> Any:
    return types.SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)


# -- another ledger


def second_home(place: Place) -> None:
    place.option("home", place.folder / "second")


def second_database(place: Place) -> None:
    place.monkeypatch.setenv("AIRFLOW_CONN_MINE", f"sqlite:///{place.folder / 'mine.db'}")
    place.option("ledger_conn_id", "mine")


def by_another_connection(place: Place) -> None:
    place.monkeypatch.setenv("AIRFLOW_CONN_AI_LEDGER", f"sqlite:///{place.folder / 'mine.db'}")


@pytest.mark.parametrize("way", [second_home, second_database, by_another_connection])
def test_a_policy_that_must_be_pinned_makes_no_call_with_another_ledger(
    place: Place, way: Callable[[Place], None]
) -> None:
    place.monkeypatch.setenv("AIRFLOW_CONN_AI_LEDGER", f"sqlite:///{place.folder / 'ledger.db'}")
    place.option("ledger_conn_id", "ai_ledger")
    place.policy(lambda policy: policy.update(ledger={"pinned": True}))
    with pytest.raises(AirflowFailException, match="which has pinned: none"):
        place.ask()
    pin_policy(settings_from_airflow(), caller=current_person("ada"), reason="reviewed")
    assert place.ask()["ok"] == 1
    place.vendor.reset()
    way(place)
    if way is second_home:
        place.option("ledger_conn_id", "")
    with pytest.raises(AirflowFailException, match="which has pinned: none"):
        place.ask(sink=str(place.folder / "again"))
    place.assert_nothing_left()


# -- teams and routes

TEAMS = {"support": {"dags": ["governed"], "routes": ["support"]}, "other": {"dags": ["other_*"]}}


@pytest.mark.parametrize(
    ("dag_id", "changes", "problem"),
    [
        ("other_dag", {}, "DAG 'other_dag' may not act for team 'support'"),
        ("governed", {"team": "other"}, "DAG 'governed' may not act for team 'other'"),
        ("governed", {"team": "Support"}, "team 'Support' is not in the policy"),
        ("governed", {"team": "support "}, "team 'support ' is not in the policy"),
        ("governed", {"team": "suppοrt"}, "is not in the policy"),
        ("governed", {"route": "raw"}, "team 'support' may not use route 'raw'"),
        ("governed", {"route": "none"}, "may not use route 'none'"),
    ],
)
def test_a_task_acts_for_its_own_team_and_over_its_routes_alone(
    place: Place, dag_id: str, changes: dict[str, Any], problem: str
) -> None:
    place.policy(lambda policy: policy.update(teams=TEAMS))
    with pytest.raises(AirflowFailException, match=problem):
        place.ask(dag_id=dag_id, **changes)
    place.assert_nothing_left()
    assert place.ask()["ok"] == 1


def test_tokens_and_budgets_of_another_team_are_not_to_be_had(place: Place) -> None:
    """Equal values have equal tokens within a team: whoever may mask for it can guess what stands in its tables."""
    place.policy(lambda policy: policy.update(teams=TEAMS))
    places = {"source": str(place.folder / "rows.jsonl"), "sink": str(place.folder / "masked"), "key": "id"}
    arguments = {"task_id": "m", **places, "team": "support", "profile": "standard", "scope": "team"}
    with pytest.raises(AirflowFailException, match="DAG 'spy' may not act for team 'support'"):
        MaskRowsOperator(**arguments).execute(context("spy"))
    assert MaskRowsOperator(**arguments).execute(context("governed"))["ok"] == 1
    with pytest.raises(AirflowFailException, match="DAG 'spy' may not act for team 'support'"):
        BudgetSensor(task_id="s", team="support", route="support", room_usd=0.1).execute(context("spy"))
    (refused,) = [event for event in place.events("rows.masked") if event["event.outcome"] == "failure"]
    assert refused["error.type"] == "not_permitted"


def test_teams_do_not_keep_people_from_moving_rows_to_a_new_key(place: Place) -> None:
    from airflow.cli.cli_parser import get_parser

    place.policy(lambda policy: policy.update(teams=TEAMS))
    sealed = str(place.folder / "sealed")
    given = {"source": str(place.folder / "rows.jsonl"), "sink": sealed, "key": "id", "team": "support", "table": "t"}
    operator = EncryptColumnsOperator(task_id="e", **given, columns={"text": "encrypt"})
    assert operator.execute(context("governed"))["ok"] == 1
    words = ["--team", "support", "--table", "t", "--key", "id", "--columns", "text", "--sink", f"{sealed}-2"]
    args = get_parser().parse_args(["ai", "keys", "reencrypt", sealed, *words])
    try:
        args.func(args)
    except SystemExit as left:
        assert not left.code  # noqa: PT017 - how a command ends


def test_a_route_with_masking_off_is_open_where_teams_have_no_routes(place: Place) -> None:
    place.ask(route="raw")
    assert PRIVATE in place.sent, "the policy says so: it lists no teams"


# -- connections


def connection(place: Place, **extra: Any) -> None:
    host = extra.pop("host", "")
    value = {"conn_type": "llm", "password": "key-1", "host": host, "extra": json.dumps(extra)}
    place.monkeypatch.setenv("AIRFLOW_CONN_VENDOR", json.dumps(value))


@pytest.mark.parametrize("name", ["host", "api_base", "base_url"])
def test_an_address_of_the_policy_goes_before_a_connections(place: Place, name: str) -> None:
    connection(place, **{name: place.elsewhere.base_url})
    assert place.ask()["ok"] == 1
    assert (len(place.vendor.requests()), place.elsewhere.requests()) == (1, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "openai/dear"),
        ("messages", []),
        ("max_tokens", 9),
        ("n", 5),
        ("extra_body", {"n": 5}),
        ("service_tier", "priority"),
        ("extra_headers", {"X": "y"}),
        ("headers", {"Host": "elsewhere"}),
        ("headers", {"accept-encoding": "gzip"}),
        ("headers", {"Content-Length": "1"}),
        ("headers", {"Idempotency-Key": "same"}),
        ("headers", {"Transfer-Encoding": "chunked"}),
    ],
)
def test_a_connections_extra_cannot_change_a_request(place: Place, name: str, value: Any) -> None:
    connection(place, **{name: value})
    with pytest.raises(AirflowFailException, match=r"deployments\.small: its connection's .*remove it there"):
        place.ask()
    place.assert_nothing_left()


@pytest.mark.parametrize("name", ["policy", "policy_path", "masking", "price", "budgets", "rpm"])
def test_a_connections_extra_is_not_read_for_what_the_policy_decides(place: Place, name: str) -> None:
    connection(place, **{name: "off"})
    try:
        place.ask()
    except AirflowFailException as refused:
        assert name in str(refused)  # noqa: PT017 - refused or without effect: both are good
    assert PRIVATE not in place.sent
    assert set(place.limits().values()) <= {0.5, 1.0}


# -- XComs


@pytest.mark.parametrize(
    "shard",
    [
        "1/1",
        "-1/2",
        "0/0",
        "0/1/2",
        "0",
        "",
        {"index": 0},
        {"index": 0, "count": 1, "policy": "own.yaml"},
        {"index": 2, "count": 2},
        [0, 1],
        7,
        {"__class__": "Shard", "index": 0, "count": 1},
    ],
    ids=str,
)
def test_a_shard_that_is_none_is_refused(place: Place, shard: Any) -> None:
    with pytest.raises(ValueError, match="shard"):
        place.ask(shard=shard)
    place.assert_nothing_left()


def test_shards_share_one_budget(place: Place) -> None:
    place.policy(limit(0.000001))
    for number in range(3):
        assert place.ask(shard=f"{number}/3", batch_rows=1)["ok"] == 0
    place.assert_nothing_left()


# -- an invoice that a DAG makes up


def lose_a_call(place: Place, rules: Mapping[str, Any]) -> int:
    """One call of which only its hold is known; returns what it was charged."""
    place.policy(lambda policy: (policy.update(ledger=dict(rules)), in_route(retry={"attempts": 1})(policy)))
    with pytest.raises(AirflowException):
        place.ask(prompt="{{ text }} [[double:drop_after]]")
    return charged(place)


def charged(place: Place) -> int:
    with open_ledger(None, place.folder / "ai") as ledger, ledger.read() as conn:
        return int(conn.execute(sa.select(sa.func.sum(llm_budgets.c.spent_nano))).scalar_one())


def reconcile_with(place: Place, dag_id: str, **changes: Any) -> Any:
    """Hand in an invoice that says of the call that the vendor charged nothing."""
    with open_ledger(None, place.folder / "ai") as ledger, ledger.read() as conn:
        call = conn.execute(sa.select(llm_requests)).one()
    line = f"{call.attempt_id},{call.created_at:%Y-%m-%dT%H:%M:%S}Z,{call.model},0,0,0"
    invoice = place.folder / "invoice.csv"
    invoice.write_text(f"attempt_id,at,model,input_tokens,output_tokens,cost_usd\n{line}\n")
    arguments = {"invoice": str(invoice), "deployments": ["small"], **changes}
    operator = LedgerReconcileOperator(task_id="r", fail_on_findings=False, **arguments)
    return operator.execute(context(dag_id))


@pytest.mark.parametrize("allowed", [["billing"], ["billing*", "other"], []])
def test_an_invoice_of_a_dag_that_may_not_reconcile_changes_nothing(place: Place, allowed: list[str]) -> None:
    before = lose_a_call(place, {"reconcile_dags": allowed})
    assert before > 0
    with pytest.raises(AirflowFailException, match="DAG 'governed' may not change the ledger by an invoice"):
        reconcile_with(place, "governed")
    reconcile_with(place, "governed", only_compare=True)
    assert charged(place) == before
    in_a_task(place)
    with pytest.raises(PolicyError, match="DAG 'mine' may not"):
        reconcile_invoice(settings_from_airflow(), str(place.folder / "invoice.csv"))
    place.option("policy_path", place.policy(name="mine.yaml"))
    pin_in_another_process(place)
    with pytest.raises(AirflowFailException, match="is not pinned in the ledger"):
        reconcile_with(place, "governed")
    assert charged(place) == before


def pin_in_another_process(place: Place) -> None:
    """Pin the governing file, as people do outside of tasks."""
    mine = os.environ["AIRFLOW__AI__POLICY_PATH"]
    place.monkeypatch.delenv("AIRFLOW_CTX_DAG_ID")
    place.option("policy_path", place.folder / "policy.yaml")
    pin_policy(settings_from_airflow(), caller=current_person("boss"), reason="reviewed")
    place.option("policy_path", mine)


@pytest.mark.parametrize("rules", [{}, {"reconcile_dags": "gov*"}])
def test_a_dag_that_may_reconcile_leaves_the_invoices_hash(place: Place, rules: dict[str, Any]) -> None:
    before = lose_a_call(place, rules)
    totals = reconcile_with(place, "governed")
    assert totals["resolved"] == 1
    assert charged(place) < before
    (event,) = place.events("ledger.reconciled")
    assert event["airflow_ai.invoice_hash"] == totals["invoice_hash"]


# -- limits set by hand


def in_a_task(place: Place) -> None:
    place.monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "mine")


BY_PEOPLE: dict[str, Callable[[], Any]] = {
    "a limit": lambda: set_budget(
        settings_from_airflow(),
        Budget(team="support", period="total", limit_usd=10**6),
        clear=False,
        caller=current_person("boss"),
        reason="more",
    ),
    "a stopped deployment": lambda: resume_deployment(
        settings_from_airflow(), "small", caller=current_person("boss"), reason="more"
    ),
    "a pin": lambda: pin_policy(settings_from_airflow(), caller=current_person("boss"), reason="more"),
    "no pin": lambda: unpin_policy(settings_from_airflow(), "0", caller=current_person("boss"), reason="more"),
}


@pytest.mark.parametrize("way", BY_PEOPLE)
def test_what_people_decide_is_refused_inside_a_task(place: Place, way: str) -> None:
    in_a_task(place)
    with pytest.raises(PermanentError, match=r"inside a task \(DAG mine\)"):
        BY_PEOPLE[way]()
    assert place.history() == []


COMMANDS = {
    "budgets": ["budgets", "set", "--team", "support", "--period", "total", "--limit-usd", "9", "--reason", "more"],
    "deployments": ["deployments", "resume", "small", "--reason", "more"],
    "pin": ["policy", "pin", "--reason", "more"],
    "review": ["review", "decide", "1", "--decision", "accepted"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_a_task_starts_is_refused(place: Place, name: str) -> None:
    """As ``BashOperator`` would start it: with the task's environment."""
    in_a_task(place)
    place.monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    command = [sys.executable, "-m", "airflow", "ai", *COMMANDS[name], "--by", "boss"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "inside a task (DAG mine)" in done.stderr + done.stdout
    assert place.history() == []


@pytest.mark.parametrize("clean", ["env -i", "env -u AIRFLOW_CTX_DAG_ID", "env AIRFLOW_CTX_DAG_ID="])
def test_a_cleaned_environment_does_not_hide_the_task(place: Place, clean: str) -> None:
    """The shell that a task starts still has the variable, whatever it gives to its children."""
    asked = "from airflow_ai_provider.core.administration.people import dag_of_this_process as f; print(f())"
    script = f'{clean} "$0" -c "$1"; true'
    environment = {**os.environ, "AIRFLOW_CTX_DAG_ID": "mine"}
    done = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable, asked], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.strip() == "mine", done.stderr[-2000:]


def test_a_name_given_by_anybody_stands_beside_the_account(place: Place) -> None:
    place.monkeypatch.setenv("LOGNAME", "somebody")
    place.monkeypatch.setenv("USER", "somebody")
    BY_PEOPLE["a limit"]()
    (changed,) = place.events("budget.changed")
    assert (changed["user.name"], changed["airflow_ai.account"]) == ("boss", pwd.getpwuid(os.geteuid()).pw_name)


# -- writing to the ledger through a source


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE llm_budgets SET limit_nano = 9000000000000",
        "WITH x AS (SELECT 1) UPDATE llm_budgets SET limit_nano = 9000000000000 RETURNING limit_nano",
        "SELECT 1; UPDATE llm_budgets SET limit_nano = 9000000000000; COMMIT",
        "WITH x AS (SELECT 1) DELETE FROM llm_budget_limits RETURNING name",
        "WITH x AS (SELECT 1) INSERT INTO llm_policy_pins SELECT 'x', 'x', 'x', 'x', 'x' RETURNING *",
    ],
)
def test_a_source_cannot_write(place: Place, statement: str) -> None:
    place.ask()
    before = place.limits()
    source = f"sql://ledger?query={quote(statement)}"
    connect = lambda _: sqlite3.connect(place.folder / "ai" / "ledger.db")  # noqa: E731
    with pytest.raises(
        SourceError,
        match=r"must be a SELECT|must be one statement|the query failed: attempt to write a readonly database",
    ):
        list(open_source(source, database=connect).batches(10))
    assert place.limits() == before
    assert pinned_policies(settings_from_airflow()) == []


def test_workers_with_a_role_of_their_own_cannot_pin(place: Place, postgres_url: str) -> None:
    """The arrangement that the documentation proposes: an owner migrates and pins, the workers only read pins."""
    owner = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    worker = f"worker_{secrets.token_hex(4)}"
    url = sa.make_url(postgres_url).set(username=worker, password="worker-password")
    workers = url.render_as_string(hide_password=False)
    mine = replace(settings_from_airflow(), ledger_url=postgres_url)
    theirs = replace(mine, ledger_url=workers)
    pin_policy(mine, caller=current_person("ada"), reason="reviewed")
    try:
        with owner.connect() as conn:
            for statement in (
                f"CREATE ROLE {worker} LOGIN PASSWORD 'worker-password'",
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {worker}",
                f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {worker}",
                f"REVOKE INSERT, UPDATE, DELETE ON llm_policy_pins FROM {worker}",
            ):
                conn.execute(sa.text(statement))
        places = (str(place.folder / "rows.jsonl"), str(place.folder / "out"))
        job = MapJob(*places, "{{ text }}", "id", "support", "support")
        assert run_map(job, Caller("governed", "r", "t"), theirs, log=quiet()).ok == 1
        place.policy(in_route(masking="off"))
        with pytest.raises(PolicyError, match="is not pinned"):
            run_map(job, Caller("governed", "r2", "t"), theirs, log=quiet())
        with pytest.raises((AIProviderError, sa.exc.DBAPIError), match="permission"):
            pin_policy(theirs, caller=current_person("eve"), reason="mine")
        (kept,) = pinned_policies(mine)
        with pytest.raises((AIProviderError, sa.exc.DBAPIError), match="permission"):
            unpin_policy(theirs, kept["policy_hash"], caller=current_person("eve"), reason="mine")
        assert pinned_policies(mine) == [kept]
    finally:
        with owner.connect() as conn:
            conn.execute(sa.text(f"DROP OWNED BY {worker}"))
            conn.execute(sa.text(f"DROP ROLE {worker}"))
        owner.dispose()
