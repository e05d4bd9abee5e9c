"""``airflow ai keys …``: the keys of an installation. No command shows a secret; new keyrings go to files of mode 0600.

A keyring in a secrets backend is changed by its administrators: the commands write the new contents to a
file, and say where to put them.
"""

from __future__ import annotations

import logging
import socket
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_ai_provider.cli.output import FINDING, GOOD, command, say, show
from airflow_ai_provider.core.errors import KeyringError

if TYPE_CHECKING:
    from airflow_ai_provider.core.ledger.installation_checks import HostKeys
    from airflow_ai_provider.core.settings import Settings

_CONNECTION = "keyring_conn_id"


@command
def list_keys(args: Namespace) -> int:
    """``airflow ai keys list``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    keyring = Installation(settings).own_keyring()
    rows = [
        {
            "key_id": key_id,
            "created": keyring.created.get(key_id, ""),
            "use": "read and write" if key_id == keyring.active else "read",
        }
        for key_id in keyring.key_ids
    ]
    show(rows, args.output)
    return GOOD


@command
def generate(args: Namespace) -> int:
    """``airflow ai keys generate``"""
    from airflow_ai_provider.core.privacy.crypto.keyring import fresh_keyring, write_private
    from airflow_ai_provider.hooks.settings import ai_home, option, settings_from_airflow

    content, conn_id = fresh_keyring(), option(_CONNECTION)
    if conn_id and not args.out:
        raise _no_file(conn_id)
    if args.out:
        write_private(Path(args.out).expanduser(), content)
        say(args, _words(args.out, conn_id, "Make"))
        return GOOD
    path, key_id = ai_home() / "keyring.json", content["active"]
    if path.exists():
        raise KeyringError(f"{path}: exists already; airflow ai keys rotate adds a key to it")
    settings = settings_from_airflow()
    is_replaced = _has_lost_keyring(settings)
    _record("keys.generated", key_id)
    write_private(path, content)
    if is_replaced:
        _adopt(settings, "keyring")
    say(args, f"{path}: made, with key {key_id}. Back it up: what it protects cannot be read without it")
    return GOOD


@command
def rotate(args: Namespace) -> int:
    """``airflow ai keys rotate``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.installation_checks import check_keys
    from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, with_fresh_key, write_private
    from airflow_ai_provider.hooks.settings import option, settings_from_airflow

    settings, conn_id = settings_from_airflow(), option(_CONNECTION)
    if settings.keyring is None:
        if args.out:
            raise KeyringError(f"--out: the keyring is {settings.home / 'keyring.json'}, which is changed in place")
        with Installation(settings) as installation:
            ledger = installation.ledger
            installation.keyring(create=False)
            # In the trail first: no key writes that the trail does not name.
            keyring = Keyring.rotate(settings.home / "keyring.json", announce=partial(_record, "keys.rotated"))
            check_keys(ledger, installation.host_keys(keyring))
        say(args, f"key {keyring.active} writes from now on; keys that still read: {len(keyring.key_ids) - 1}")
        return GOOD
    if not args.out:
        raise _no_file(conn_id)
    with Installation(settings) as installation:
        installation.keyring()
    content = with_fresh_key(settings.keyring)
    write_private(Path(args.out).expanduser(), content)
    _record("keys.rotated", content["active"])
    say(args, _words(args.out, conn_id, "Change"))
    return GOOD


@command
def reencrypt(args: Namespace) -> int:
    """``airflow ai keys reencrypt``"""
    from airflow_ai_provider.core.administration.people import current_person
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.jobs.transform import RowsJob, transform_rows
    from airflow_ai_provider.core.jobs.transforms import ReencryptStep
    from airflow_ai_provider.core.privacy.crypto.fields import Fields
    from airflow_ai_provider.core.rows.shard import Shard
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    job = RowsJob(args.source, args.sink, args.key, args.team, Shard(0, 1), args.batch_rows)
    with Installation(settings_from_airflow()) as installation:
        keyring = installation.keyring(create=False)
        fields = Fields(keyring, team=args.team, table=args.table)
        step = ReencryptStep(_columns(args.columns), fields=fields, table=args.table, key_id=keyring.active)
        summary = transform_rows(job, step, current_person(), installation, log=logging.getLogger(__name__))
    kept = f", {summary.skipped} of them by an earlier try" if summary.skipped else ""
    say(args, f"{summary.sink}: {summary.ok} of {summary.rows} rows are under key {keyring.active}{kept}")
    if not summary.error:
        return GOOD
    kinds = ", ".join(f"{kind} {count}" for kind, count in summary.errors.items())
    print(f"error: {summary.error} rows could not be read ({kinds}); see column privacy_error", file=sys.stderr)
    return FINDING


@command
def adopt(args: Namespace) -> int:
    """``airflow ai keys adopt keyring|signing``"""
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    keys = _adopt(settings_from_airflow(), args.kind)
    say(args, f"{keys.purpose}: key {keys.active} of this host is the installation's; give it to every other host")
    return GOOD


def _adopt(settings: Settings, kind: str) -> HostKeys:
    """Make this host's keys those of all hosts on its ledger; the trail names the keys that are given up."""
    from airflow_ai_provider.core.administration.audit import open_signer, signing_keys
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.installation_checks import adopt_keys, current_key, registered_keys

    if kind == "signing":
        keys = signing_keys(settings, open_signer(settings))
    else:
        own = Installation(settings)
        keys = own.host_keys(own.own_keyring())
    with Installation(settings) as installation:
        ledger = installation.ledger
        registered = registered_keys(ledger, keys.purpose)
        for key in registered:
            if key.key_id not in keys.fingerprints:
                _record("keys.retired", key.key_id)
        if (current := current_key(registered)) is None or current.key_id != keys.active:
            _record("keys.rotated", keys.active)
        adopt_keys(ledger, keys)
    return keys


def _has_lost_keyring(settings: Settings) -> bool:
    """Whether this host had a keyring. Raises ``KeyringError`` where another host on the same ledger has one."""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.installation_checks import KEYRING, current_key, registered_keys

    with Installation(settings) as installation:
        ledger = installation.ledger
        current = current_key(registered_keys(ledger, KEYRING))
    if current is not None and current.host != socket.gethostname():
        raise KeyringError(
            f"host {current.host} on the same ledger writes with key {current.key_id}: copy its keyring.json to"
            f" {settings.home}, or name one connection for all hosts in [ai] keyring_conn_id. Where that key is lost"
            " for good, make a keyring with --out, put it there, and run airflow ai keys adopt keyring"
        )
    return current is not None


def _columns(text: str) -> dict[str, str]:
    """``iban,customer_id=customer``: columns, with the domain of those that are encrypted for joins."""
    entries = (part.strip().partition("=") for part in text.split(",") if part.strip())
    named = {name: domain or name for name, _, domain in entries}
    if not named:
        raise KeyringError(f"--columns {text!r}: expected names, such as iban,customer_id=customer")
    return named


def _no_file(conn_id: str) -> KeyringError:
    return KeyringError(
        f"the keyring is in connection {conn_id!r}, which this command cannot change; name a new file with --out, and "
        "put its contents into the connection"
    )


def _words(path: str, conn_id: str, verb: str) -> str:
    where = f"connection {conn_id!r}" if conn_id else f"the connection that [ai] {_CONNECTION} is to name"
    return (
        f"{path}: written, readable by you only. {verb} {where} so that its password is the contents of this file, on "
        "all hosts at once, keep a backup in a safe place, and delete the file"
    )


def _record(action: str, key_id: str) -> None:
    from airflow_ai_provider.core.administration.audit import record
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings: Settings = settings_from_airflow()
    record(settings, action, None, key_id=key_id)
