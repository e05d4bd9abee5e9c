"""``airflow ai review …``: answers that wait for a person. Exit status: 0 good, 2 could not run."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from airflow_ai_provider.cli.output import GOOD, command, say, show
from airflow_ai_provider.core.administration.people import current_person

_LISTED = ("team_id", "dag_id", "run_id", "row_key", "reason_kind", "status", "decision")


@command
def list_reviews(args: Namespace) -> int:
    """``airflow ai review list``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.reviews import list_reviews

    wanted = {"team": args.team, "dag_id": args.dag, "run_id": args.run, "reason_kind": args.kind}
    status = None if args.status == "all" else args.status
    settings = settings_from_airflow()
    with Installation(settings) as installation, installation.ledger.read() as conn:
        items = list_reviews(conn, **wanted, status=status, limit=args.limit)
    show(
        [{"item": item["item_id"], "created_at": _time(item["created_at"]), **_some(item, _LISTED)} for item in items],
        args.output,
    )
    return GOOD


@command
def show_review(args: Namespace) -> int:
    """``airflow ai review show``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.reviews import review_of

    settings = settings_from_airflow()
    with Installation(settings) as installation, installation.ledger.read() as conn:
        item = review_of(conn, args.item)
    times = {name: _time(item[name]) for name in ("created_at", "decided_at", "updated_at")}
    # SQLAlchemy's names of columns are texts of a kind of their own, which YAML does not take.
    whole = {str(name): "" if value is None else value for name, value in {**item, **times}.items()}
    down = args.output in ("table", "plain")  # its columns are too many for the width of a screen
    show([{"column": name, "value": value} for name, value in whole.items()] if down else [whole], args.output)
    return GOOD


@command
def decide(args: Namespace) -> int:
    """``airflow ai review decide``"""
    from airflow_ai_provider.core.administration.reviews import decide_reviews
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    caller = current_person(args.by)
    decide_reviews(settings_from_airflow(), args.items, args.decision, caller=caller, note=args.note)
    for item in dict.fromkeys(args.items):
        say(args, f"{item}: {args.decision} by {caller.user}")
    return GOOD


def _some(item: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name.removesuffix("_id"): "" if item[name] is None else item[name] for name in names}


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""
