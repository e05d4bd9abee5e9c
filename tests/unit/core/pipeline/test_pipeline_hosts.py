"""What a host may not compare, since another has still to seal it, is excused by try and counted; nothing else is."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.pipeline import House, policy
from test_pipeline_shared_keys import hosts as _two_hosts
from test_pipeline_shared_keys import share

from airflow_ai_provider.core.administration.audit import seal_audit, verify_audit
from airflow_ai_provider.core.audit.verify.findings import VerifyReport
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.schema import llm_requests, review_items

hosts = _two_hosts


@pytest.fixture
def beside(hosts: tuple[House, House]) -> tuple[House, House]:
    """The second host has sealed a job; the first has run one twice, from the store then, and sealed nothing."""
    one, two = hosts
    for host in hosts:
        host.write(policy(reuse={"scope": "team"}))
    seal_audit(one.settings)
    (key,) = (one.settings.home / "audit" / "keys").glob("verify_key*.pem")
    two.run(["sealed"], run_id="two-1")
    share(two, one, "keyring.json")
    share(one, two, f"audit/keys/{key.name}", "audit/keys/signing_key.pem")
    seal_audit(two.settings)
    one.run(["a", "b", "c"], run_id="one-1")
    one.run(["a", "b", "c"], run_id="one-2")
    return one, two


def verified(house: House) -> tuple[Counter[str], Counter[str], VerifyReport]:
    report = verify_audit(house.settings)
    assert report.error == ""
    kinds = [Counter(each.kind for each in found) for found in (report.findings, report.notes)]
    return kinds[0], kinds[1], report


def excused(report: VerifyReport) -> int:
    (told,) = [each.detail for each in report.notes if each.kind == "ledger_elsewhere"]
    return int(told.split()[0])


def write(house: House, table: sa.Table, row: dict[str, Any]) -> None:
    made = {column.name for column in table.c if column.computed is not None}
    with open_ledger(house.settings.ledger_url, house.settings.home) as ledger, ledger.write() as conn:
        conn.execute(sa.insert(table).values({name: value for name, value in row.items() if name not in made}))


def row_of(house: House, run_id: str, /, **changes: Any) -> dict[str, Any]:
    (first, *_) = house.requests(run_id=run_id)
    return {**first, "attempt_id": "f" * 32, "created_at": datetime.now(UTC), **changes}


def test_rows_of_an_unsealed_host_are_excused_and_counted_until_it_seals(beside: tuple[House, House]) -> None:
    one, two = beside
    findings, notes, report = verified(two)
    assert findings == {}
    assert notes["segment_elsewhere"] == 2
    assert excused(report) == 6
    assert verified(one)[0] == {}
    seal_audit(one.settings)
    findings, notes, _ = verified(two)
    assert findings == {}
    assert not {"segment_elsewhere", "ledger_elsewhere"} & set(notes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"run_id": "one-1"}, False),  # a try that another host has still to seal
        ({"run_id": "two-1"}, True),
        ({"run_id": "one-1", "try_number": 7}, True),
        ({"run_id": "none"}, True),
        ({"run_id": "two-1", "status": "unknown"}, False),  # any process may settle what a dead one left
        ({"run_id": "two-1", "status": "unknown", "created_at": datetime.now(UTC) - timedelta(hours=3)}, True),
    ],
)
def test_an_invented_row_is_found_unless_it_is_one_that_may_wait_elsewhere(
    beside: tuple[House, House], changes: dict[str, Any], found: bool
) -> None:
    one, two = beside
    before = excused(verified(two)[2])
    write(two, llm_requests, row_of(two, "two-1", **changes))
    findings, _, report = verified(two)
    assert set(findings) == ({"ledger_without_event"} if found else set())
    assert excused(report) == before + (not found)
    assert "ledger_without_event" in verified(one)[0], "the host whose segments are open knows better"
    seal_audit(one.settings)
    assert "ledger_without_event" in verified(two)[0], "at the latest when they are sealed"


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=3)])
def test_a_decision_may_wait_elsewhere_if_it_is_no_older(beside: tuple[House, House], age: timedelta) -> None:
    _, two = beside
    moment = datetime.now(UTC) - age
    task = {name: row_of(two, "two-1")[name] for name in ("team_id", "dag_id", "run_id", "task_id", "map_index")}
    decided = {"status": "decided", "decision": "accepted", "decided_by": "eve", "decided_at": moment}
    texts = dict.fromkeys(("row_key", "route", "reason_kind", "reason", "sink"), "x")
    moments = {"created_at": moment, "updated_at": moment}
    item = {"item_id": "e" * 32, "request_id": "e" * 32, "try_number": 1, **task, **texts, **moments, **decided}
    write(two, review_items, item)
    assert set(verified(two)[0]) == ({"ledger_without_event"} if age else set())


def test_a_try_that_ended_while_the_ledger_was_read_is_looked_up_again(
    hosts: tuple[House, House], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last event has an earlier time than the verification, as where the other host's clock is behind."""
    from airflow_ai_provider.core.audit.verify.compare_with_ledger import Reconciliation

    one, _ = hosts
    one.write(policy(reuse={"scope": "team"}))
    one.run(["a", "b"], run_id="r1")
    seal_audit(one.settings)
    read = Reconciliation._read_ledger

    def and_then_more(self: Reconciliation) -> None:
        read(self)
        if not one.requests(run_id="r2"):
            one.run(["a", "b"], run_id="r2")

    monkeypatch.setattr(Reconciliation, "_read_ledger", and_then_more)
    findings, _, _ = verified(one)
    assert findings == {}


def test_reused_answers_that_vanish_from_the_ledger_are_still_found(hosts: tuple[House, House]) -> None:
    one, _ = hosts
    one.write(policy(reuse={"scope": "team"}))
    one.run(["a", "b"], run_id="r1")
    one.run(["a", "b"], run_id="r2")
    seal_audit(one.settings)
    assert verified(one)[0] == {}
    with open_ledger(one.settings.ledger_url, one.settings.home) as ledger, ledger.write() as conn:
        reused = sa.select(llm_requests.c.attempt_id).where(llm_requests.c.status == "reused").limit(1)
        (attempt,) = conn.execute(reused).scalars()
        conn.execute(sa.delete(llm_requests).where(llm_requests.c.attempt_id == attempt))
    assert set(verified(one)[0]) == {"reuse_differs"}
