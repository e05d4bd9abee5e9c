"""What all hosts on one ledger must share: accepted policies and keys.

Policies that a ledger accepts: once one is pinned, no other makes calls with this ledger.

A pin is a digest of a governing policy. It binds the two: a task that reads another file is refused by the ledger, and
a policy that says ``ledger: {pinned: true}`` refuses a ledger that does not know it, such as one in another
``[ai] home``. Several may be pinned at once, while a new file is rolled out.

Fingerprints of an installation's keys, so that hosts that share a ledger notice when they do not share their keys.

Each key that a host writes with is registered at first use, with the host's name and a fingerprint that says nothing of
the key. The key that was registered last as one to write with is the installation's. A host must have it; it may have
more. So a rotation needs nothing but the new key on every host: a host that has not got it yet is warned for ``GRACE``
and then refused. A key that is lost for good is replaced by ``adopt_keys``.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, text, update

from airflow_ai_provider.core.errors import KeyringError, LedgerError, PolicyError
from airflow_ai_provider.core.ledger.database import Ledger, insert_ignore
from airflow_ai_provider.core.ledger.schema import ai_keys, llm_policy_pins
from airflow_ai_provider.core.policy.loading import PolicyFile, shown_path

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
    for name, given, most in (("--by", by, _LONGEST_BY), ("--reason", reason, _LONGEST_REASON)):
        if not given.strip() or len(given) > most or not given.isprintable():
            raise LedgerError(f"{name}: expected one line of text, at most {most} characters")


def pins(conn: Connection) -> list[dict[str, Any]]:
    """All pins, oldest first."""
    query = select(llm_policy_pins).order_by(llm_policy_pins.c.pinned_at, llm_policy_pins.c.policy_hash)
    return [dict(row) for row in conn.execute(query).mappings()]


log = logging.getLogger(__name__)

KEYRING = "keyring"
SIGNING = "signing"
GRACE = timedelta(hours=1)
"""How long a host may work without a key that another one has begun to write with."""
_LOCK = 0x6169_6B65_7973
"""Of the registration, on PostgreSQL; spells "aikeys"."""
_CONSEQUENCES = {
    KEYRING: (
        "With different keys stored answers are not found again and are paid twice, masked values get different tokens,"
        " and what one host encrypted the other cannot read"
    ),
    SIGNING: "With different keys the audit trail that one host seals does not verify on the other",
}


@dataclass(frozen=True, slots=True)
class RegisteredKey:
    """A key as the host that used it first registered it."""

    key_id: str
    fingerprint: str
    host: str
    registered_at: datetime
    active_since: datetime | None
    """When a host first wrote with it; ``None`` for a key that was never seen but for reading."""


@dataclass(frozen=True, slots=True)
class HostKeys:
    """The keys that this host has for a purpose."""

    purpose: str
    """``keyring``, or ``signing TRAIL``."""
    fingerprints: Mapping[str, str]
    """By key id."""
    active: str
    """Id of the key that this host writes with; empty where it only reads."""
    remedy: str
    """What to do where they are not those of the installation."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a comparison says."""

    refusal: str = ""
    warning: str = ""
    unregistered: tuple[str, ...] = ()
    """Ids of keys to register."""
    newly_active: bool = False
    """Whether the active key is to become the installation's."""


def current_key(registered: Sequence[RegisteredKey]) -> RegisteredKey | None:
    """The key that the installation writes with."""
    active = [key for key in registered if key.active_since is not None]
    return max(active, key=lambda key: key.active_since or key.registered_at, default=None)


def compare_keys(registered: Sequence[RegisteredKey], keys: HostKeys, now: datetime) -> Judgement:
    """Decide whether this host may work with its keys, and which of them are to be registered."""
    for key in registered:
        if keys.fingerprints.get(key.key_id, key.fingerprint) != key.fingerprint:
            return Judgement(f"key {key.key_id} is another key here than on host {key.host}, which used it first")
    known = {key.key_id: key for key in registered}
    current = current_key(registered)
    if current is not None and current.key_id not in keys.fingerprints:
        since = f"{current.active_since:%Y-%m-%d %H:%M} UTC"
        missing = (
            f"key {current.key_id}, which host {current.host} writes with since {since},"
            f" is not among the keys of this host ({', '.join(sorted(keys.fingerprints)) or 'none'})"
        )
        only_late = keys.active in known and now - (current.active_since or now) < GRACE
        return Judgement(warning=missing) if only_late else Judgement(missing)
    new = tuple(key_id for key_id in keys.fingerprints if key_id not in known)
    newly_active = bool(keys.active) and (keys.active in new or known[keys.active].active_since is None)
    return Judgement(unregistered=new, newly_active=newly_active)


def check_keys(ledger: Ledger, keys: HostKeys, *, register: bool = True) -> None:
    """Compare this host's keys with the installation's, and register those that are new.

    Raises ``KeyringError`` where this host must not work with its keys, and ``LedgerUnavailable``.
    """
    judgement = compare_keys(registered_keys(ledger, keys.purpose), keys, ledger.now())
    if register and not judgement.refusal and (judgement.unregistered or judgement.newly_active):
        judgement = ledger.run(lambda conn, _again: _compare_and_register(conn, keys, ledger.now()))
    if judgement.refusal:
        raise KeyringError(explain(keys.purpose, judgement.refusal, keys.remedy))
    if judgement.warning:
        log.warning(
            "%s. This host is refused %s after that", explain(keys.purpose, judgement.warning, keys.remedy), GRACE
        )


def explain(purpose: str, mismatch: str, remedy: str) -> str:
    """A message that says which keys differ, what comes of it, and what to do."""
    kind = purpose.partition(" ")[0]
    return f"{purpose} of host {socket.gethostname()}: {mismatch}. {_CONSEQUENCES[kind]}. {remedy}"


def registered_keys(ledger: Ledger, purpose: str) -> list[RegisteredKey]:
    """Keys of a purpose that hosts have registered, oldest first. Raises ``LedgerUnavailable``."""
    return ledger.run(lambda conn, _again: _read(conn, purpose), read=True)


def adopt_keys(ledger: Ledger, keys: HostKeys) -> None:
    """Make this host's keys those of the installation, and forget the others. Raises ``LedgerUnavailable``."""
    ledger.run(lambda conn, _again: _replace(conn, keys, ledger.now()))


def _replace(conn: Connection, keys: HostKeys, now: datetime) -> None:
    _lock(conn)
    conn.execute(delete(ai_keys).where(ai_keys.c.purpose == keys.purpose))
    _register(conn, [], keys, Judgement(unregistered=tuple(keys.fingerprints), newly_active=True), now)


def _compare_and_register(conn: Connection, keys: HostKeys, now: datetime) -> Judgement:
    """Compare once more, under the lock, and register what is new."""
    _lock(conn)
    registered = _read(conn, keys.purpose)
    judgement = compare_keys(registered, keys, now)
    if not judgement.refusal:
        _register(conn, registered, keys, judgement, now)
    return judgement


def _lock(conn: Connection) -> None:
    """One registration at a time; SQLite's transaction is one already."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _read(conn: Connection, purpose: str) -> list[RegisteredKey]:
    query = select(ai_keys).where(ai_keys.c.purpose == purpose).order_by(ai_keys.c.registered_at, ai_keys.c.key_id)
    return [
        RegisteredKey(
            row.key_id,
            row.fingerprint,
            row.host,
            _aware(row.registered_at),
            _aware(row.active_since) if row.active_since else None,
        )
        for row in conn.execute(query)
    ]


def _register(
    conn: Connection, registered: Sequence[RegisteredKey], keys: HostKeys, judgement: Judgement, now: datetime
) -> None:
    current = current_key(registered)
    # Later than the one before, whatever the clock says.
    since = max(now, current.active_since + timedelta(microseconds=1)) if current and current.active_since else now
    for key_id in judgement.unregistered:
        row = {
            "purpose": keys.purpose,
            "key_id": key_id,
            "fingerprint": keys.fingerprints[key_id],
            "host": socket.gethostname(),
            "registered_at": now,
        }
        conn.execute(insert(ai_keys).values(row))
    if judgement.newly_active:
        mine = (ai_keys.c.purpose == keys.purpose) & (ai_keys.c.key_id == keys.active)
        conn.execute(update(ai_keys).where(mine).values(active_since=since))


def _aware(moment: datetime) -> datetime:
    """SQLite gives moments back without their zone; they were stored as UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
