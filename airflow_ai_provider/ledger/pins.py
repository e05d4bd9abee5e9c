"""Policies that a ledger accepts: once one is pinned, no other makes calls with this ledger.

A pin is a digest of a governing policy. It binds the two: a task that reads another file is refused by the ledger, and
a policy that says ``ledger: {pinned: true}`` refuses a ledger that does not know it, such as one in another
``[ai] home``. Several may be pinned at once, while a new file is rolled out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select

from airflow_ai_provider.errors import LedgerError, PolicyError
from airflow_ai_provider.ledger.database import insert_ignore
from airflow_ai_provider.ledger.schema import llm_policy_pins
from airflow_ai_provider.policy.loading import PolicyFile, shown_path

_LONGEST_BY, _LONGEST_REASON = 200, 256
"""Characters; the audit trail keeps no longer reason."""
_REMEDY = "airflow ai policy pin --reason …"


def require_pinned(conn: Connection, file: PolicyFile, *, always: bool) -> None:
    """Raise ``PolicyError`` where the ledger has pinned other policies than this one, or, with ``always``, none."""
    pinned = set(conn.execute(select(llm_policy_pins.c.policy_hash)).scalars())
    if file.digest in pinned or not (pinned or always):
        return
    known = ", ".join(sorted(digest[:12] for digest in pinned)) or "none"
    raise PolicyError(
        f"{file.path}: this policy ({file.digest[:12]}) is not pinned in the ledger, which has pinned: {known}; no "
        f"call is made. If the file is as intended: {_REMEDY}; otherwise look who changed it, or [ai] policy_path"
    )


def pin_policy(conn: Connection, file: PolicyFile, *, by: str, reason: str, now: datetime) -> bool:
    """Accept a policy. Returns whether it was not pinned before."""
    values = {"policy_hash": file.digest, "policy_path": shown_path(file.path)}
    said = {**values, "pinned_by": by, "reason": reason, "pinned_at": now}
    return bool(conn.execute(insert_ignore(conn, llm_policy_pins), said).rowcount)


def unpin_policy(conn: Connection, digest: str) -> None:
    """Accept a policy no more."""
    conn.execute(delete(llm_policy_pins).where(llm_policy_pins.c.policy_hash == digest))


def pinned_digest(conn: Connection, beginning: str) -> str:
    """The pinned digest that begins so. Raises ``LedgerError`` where there is none, or more than one."""
    found = [pin["policy_hash"] for pin in pins(conn) if beginning and pin["policy_hash"].startswith(beginning)]
    if len(found) != 1:
        problem = "begins more than one pinned policy" if found else "is no pinned policy"
        raise LedgerError(f"{beginning!r} {problem}; see: airflow ai policy pins")
    return str(found[0])


def require_reason(by: str, reason: str) -> None:
    """Raise ``LedgerError`` unless both are given, each one line that fits its column."""
    for name, text, most in (("--by", by, _LONGEST_BY), ("--reason", reason, _LONGEST_REASON)):
        if not text.strip() or len(text) > most or not text.isprintable():
            raise LedgerError(f"{name}: expected one line of text, at most {most} characters")


def pins(conn: Connection) -> list[dict[str, Any]]:
    """All pins, oldest first."""
    query = select(llm_policy_pins).order_by(llm_policy_pins.c.pinned_at, llm_policy_pins.c.policy_hash)
    return [dict(row) for row in conn.execute(query).mappings()]
