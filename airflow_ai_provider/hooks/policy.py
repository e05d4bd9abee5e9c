"""Pinning policies in the ledger: from then on no other policy makes calls with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.hooks.audit import record
from airflow_ai_provider.hooks.context import require_person

if TYPE_CHECKING:
    from airflow_ai_provider.policy.loading import PolicyFile


def pin_policy(settings: Settings, *, caller: Caller, reason: str) -> PolicyFile:
    """Let the governing policy as it is now make calls, and none that is not pinned. It is in the trail first.

    Raises ``PolicyError`` where the file is wrong, ``LedgerError`` without a name or a reason, and ``PermanentError``
    inside a task.
    """
    from airflow_ai_provider.ledger import open_ledger, pins
    from airflow_ai_provider.policy.loading import shown_path

    require_person("a policy cannot be pinned")
    pins.require_reason(caller.user, reason)
    file = settings.load_policy().file
    said = {"policy_hash": file.digest, "policy_path": shown_path(file.path), "reason": reason}
    record(settings, "policy.pinned", caller, **said)
    with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.write() as conn:
        pins.pin_policy(conn, file, by=caller.user, reason=reason, now=ledger.now())
    return file


def unpin_policy(settings: Settings, digest: str, *, caller: Caller, reason: str) -> str:
    """Take a pin back; returns its whole digest. After the last one every policy may make calls again.

    ``digest`` may be shortened. Raises ``LedgerError`` where no pin, or more than one, begins with it, and
    ``PermanentError`` inside a task.
    """
    from airflow_ai_provider.ledger import open_ledger, pins

    require_person("a policy cannot be unpinned")
    pins.require_reason(caller.user, reason)
    with open_ledger(settings.ledger_url, settings.home) as ledger:
        with ledger.read() as conn:
            whole = pins.pinned_digest(conn, digest)
        record(settings, "policy.unpinned", caller, policy_hash=whole, reason=reason)
        with ledger.write() as conn:
            pins.unpin_policy(conn, whole)
    return whole


def pinned_policies(settings: Settings) -> list[dict[str, Any]]:
    """All pins, oldest first."""
    from airflow_ai_provider.ledger import open_ledger, pins

    with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.read() as conn:
        return pins.pins(conn)
