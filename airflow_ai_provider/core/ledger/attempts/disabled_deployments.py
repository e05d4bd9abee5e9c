"""Deployments that are stopped: one charged more than the upper bound it was held for, so its bounds cannot be trusted.

A stop holds for every process, from the transaction that settles the charge, until a person lifts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select

from airflow_ai_provider.core.errors import DeploymentStopped, LedgerError
from airflow_ai_provider.core.ledger.database import insert_ignore
from airflow_ai_provider.core.ledger.schema import llm_stopped_deployments


def stop_deployment(conn: Connection, deployment: str, *, attempt_id: str, over_nano: int, now: datetime) -> None:
    """Send nothing more to a deployment. ``over_nano`` is by how much the attempt exceeded its bound."""
    stop = {
        "deployment": deployment,
        "stopped_at": now,
        "reason": "charged more than its upper bound",
        "attempt_id": attempt_id,
        "over_nano": over_nano,
    }
    conn.execute(insert_ignore(conn, llm_stopped_deployments), stop)


def refuse_stopped(conn: Connection, deployments: Iterable[str]) -> None:
    """Raise ``DeploymentStopped`` if one of them is stopped."""
    query = select(llm_stopped_deployments.c.deployment)
    stopped = conn.execute(query.where(llm_stopped_deployments.c.deployment.in_(sorted(deployments)))).scalars().first()
    if stopped is not None:
        raise DeploymentStopped(
            f"deployment {stopped} is stopped: it charged more than its upper bound; correct its price or limits in "
            f"the policy, then run: airflow ai deployments resume {stopped} --reason …"
        )


def stopped_deployments(conn: Connection) -> list[dict[str, Any]]:
    """What is stopped, with the attempt that stopped it."""
    query = select(llm_stopped_deployments).order_by(llm_stopped_deployments.c.deployment)
    return [dict(row) for row in conn.execute(query).mappings()]


def require_stopped(conn: Connection, deployment: str) -> None:
    """Raise ``LedgerError`` where a deployment is not stopped."""
    stopped = [stop["deployment"] for stop in stopped_deployments(conn)]
    if deployment not in stopped:
        raise LedgerError(f"deployment {deployment!r} is not stopped; stopped are: {', '.join(stopped) or 'none'}")


def resume_deployment(conn: Connection, deployment: str) -> None:
    """Let calls go to a deployment again. Raises ``LedgerError`` where it is not stopped."""
    require_stopped(conn, deployment)
    conn.execute(delete(llm_stopped_deployments).where(llm_stopped_deployments.c.deployment == deployment))
