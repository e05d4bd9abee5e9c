"""Pinning policies in the ledger: from then on no other policy makes calls with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.administration.people import require_person
from airflow_ai_provider.core.installation import Installation
from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.gateway.settings import Settings

if TYPE_CHECKING:
    from airflow_ai_provider.policy.loading import PolicyFile


def pin_policy(settings: Settings, *, caller: Caller, reason: str) -> PolicyFile:
    """Let the governing policy as it is now make calls, and none that is not pinned. It is in the trail first.

    Raises ``PolicyError`` where the file is wrong, ``LedgerError`` without a name or a reason, and ``PermanentError``
    inside a task.
    """
    from airflow_ai_provider.ledger import pins
    from airflow_ai_provider.policy.loading import shown_path

    require_person("a policy cannot be pinned")
    pins.require_reason(caller.user, reason)
    with Installation(settings) as installation:
        file = installation.policy.file
        said = {"policy_hash": file.digest, "policy_path": shown_path(file.path), "reason": reason}
        installation.record("policy.pinned", caller, **said)
        ledger = installation.ledger
        with ledger.write() as conn:
            pins.pin_policy(conn, file, by=caller.user, reason=reason, now=ledger.now())
    return file


def unpin_policy(settings: Settings, digest: str, *, caller: Caller, reason: str) -> str:
    """Take a pin back; returns its whole digest. After the last one every policy may make calls again.

    ``digest`` may be shortened. Raises ``LedgerError`` where no pin, or more than one, begins with it, and
    ``PermanentError`` inside a task.
    """
    from airflow_ai_provider.ledger import pins

    require_person("a policy cannot be unpinned")
    pins.require_reason(caller.user, reason)
    with Installation(settings) as installation:
        with installation.ledger.read() as conn:
            whole = pins.pinned_digest(conn, digest)
        installation.record("policy.unpinned", caller, policy_hash=whole, reason=reason)
        with installation.ledger.write() as conn:
            pins.unpin_policy(conn, whole)
    return whole


def pinned_policies(settings: Settings) -> list[dict[str, Any]]:
    """All pins, oldest first."""
    from airflow_ai_provider.ledger import pins

    with Installation(settings) as installation, installation.ledger.read() as conn:
        return pins.pins(conn)
