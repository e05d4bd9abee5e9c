"""The settings of an installation, from the ``[ai]`` section of Airflow's configuration and from Airflow connections.

A missing connection is an error that names its id and who asked for it. Vendors' connections are resolved when they
are first needed, by the thread that needs them. A relative path in the configuration starts at Airflow's home.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from airflow_ai_provider.core.audit.trail.spool import SEAL_WITHIN, SPOOL_BYTES
from airflow_ai_provider.core.errors import KeyringError, PermanentError, PolicyError, TransientError
from airflow_ai_provider.core.settings import RETENTION_DAYS, Endpoint, Settings
from airflow_ai_provider.hooks import connections

log = logging.getLogger(__name__)

SECTION = "ai"
_SHORTEST_KEY = 16
"""Characters; shorter texts of a keyring are names and dates, and masking those would riddle every log."""
_T = TypeVar("_T")
_STORE_WITH_CONNECTION = re.compile(r"^(?P<scheme>s3a?)://(?P<conn_id>[^/@]+)@(?P<rest>.+)$")


def settings_from_airflow(*, policy: str | None = None) -> Settings:
    """Settings of this installation; ``policy`` is a file of the DAG's own that narrows ``[ai] policy_path``.

    Raises ``PolicyError`` for such a file where ``[ai] allow_dag_policy`` is off, and ``PermanentError`` where a
    connection that the configuration names is missing or of the wrong kind.
    """
    home = ai_home()
    policy_path = _policy_path(home)
    dag_policy_path = _dag_policy_path(policy, policy_path)
    archive_uri, storage_options = _archive()
    vectors_uri, vectors_token = _from("vectors_conn_id", connections.vectors_address) or (None, None)
    return Settings(
        home=home,
        policy_path=policy_path,
        dag_policy_path=dag_policy_path,
        ledger_url=_from("ledger_conn_id", connections.ledger_url),
        cache_url=_from("cache_conn_id", connections.cache_url),
        archive_uri=archive_uri,
        audit_spool_bytes=_spool_bytes(),
        audit_seal_within=_seal_within(),
        audit_signing_key=option("audit_signing_key") or None,
        archive_lock=option("archive_lock").lower() or None,
        archive_retention_days=_days("archive_retention_days", RETENTION_DAYS),
        search=_from("search_conn_id", connections.search_address),
        vectors_uri=vectors_uri,
        vectors_token=vectors_token,
        keyring=_from("keyring_conn_id", connections.keyring),
        endpoint=resolve_endpoint,
        kms=kms_client,
        database=open_database,
        storage_options=storage_options,
    )


def with_archive(settings: Settings, archive_uri: str | None) -> Settings:
    """The settings with another archive, which may name a connection as ``s3://CONN_ID@bucket/prefix``."""
    if not archive_uri:
        return settings
    uri, options = _split_store(archive_uri, "--archive")
    return replace(settings, archive_uri=uri, storage_options={**settings.storage_options, **options})


def with_policy(settings: Settings, policy: str | None) -> Settings:
    """The settings with another governing policy, for commands that look at a file before it governs anything."""
    if not policy:
        return settings
    return replace(settings, policy_path=Path(policy).expanduser().absolute(), dag_policy_path=None)


def store(settings: Settings, uri: str, asked_by: str) -> tuple[str, Mapping[str, Any]]:
    """A plain URI and its fsspec options of a place, which may name a connection as ``s3://CONN_ID@bucket/prefix``."""
    plain, options = _split_store(uri, asked_by)
    return plain, options or settings.storage_options


def option(name: str) -> str:
    """The value of an option of ``[ai]``, empty where it is not set."""
    from airflow.sdk import conf

    return str(conf.get(SECTION, name, fallback="") or "").strip()


def _spool_bytes() -> int:
    """``[ai] audit_spool_limit_mb`` in bytes. Raises ``PermanentError`` for anything but a positive whole number."""
    text = option("audit_spool_limit_mb")
    if not text:
        return SPOOL_BYTES
    if not text.isdecimal() or int(text) < 1:
        raise PermanentError(f"[{SECTION}] audit_spool_limit_mb {text!r}: expected megabytes, such as 1024")
    return int(text) * 1024**2


def _seal_within() -> timedelta:
    """``[ai] audit_seal_within_minutes``. Raises ``PermanentError`` for anything but a positive whole number."""
    text = option("audit_seal_within_minutes")
    if not text:
        return SEAL_WITHIN
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise PermanentError(f"[{SECTION}] audit_seal_within_minutes {text!r}: expected minutes, such as 60")
    return timedelta(minutes=int(text))


def ai_home() -> Path:
    """``[ai] home``, or the folder ``ai`` in Airflow's home."""
    return _airflow_home() / Path(option("home") or "ai").expanduser()


def resolve_endpoint(conn_id: str) -> Endpoint:
    """How to reach the vendor behind a connection (``endpoints`` lists the types).

    Raises ``PermanentError`` where it is missing or unusable. Its secrets are registered with Airflow's masker.
    """
    found = connections.endpoint(_connection(conn_id, "a deployment of the policy"))
    _mask(*connections.secrets_of(found))
    _tell_unused(conn_id, found.unused)
    return found


@lru_cache(maxsize=256)
def _tell_unused(conn_id: str, names: tuple[str, ...]) -> None:
    """Say once per process which fields of a connection have no effect here."""
    if names:
        log.warning(
            "connection %r: extra's %s is not used: the policy names models, fallbacks, time-outs and retries, and "
            "certificates are always verified",
            conn_id,
            ", ".join(names),
        )


def open_database(conn_id: str) -> Any:
    """A DB-API connection of an Airflow connection, for ``sql://`` sources. Raises ``PermanentError``."""
    from airflow.sdk.exceptions import AirflowException

    conn = _connection(conn_id, f"sql://{conn_id}")
    try:
        hook = conn.get_hook()
    except (AirflowException, ImportError, AttributeError):  # AttributeError: a type without a hook, such as generic
        raise PermanentError(
            f"connection {conn_id!r}: no hook for type {conn.conn_type!r} can be loaded; "
            "install the provider of that database"
        ) from None
    if not hasattr(hook, "get_conn"):
        raise PermanentError(f"connection {conn_id!r}: type {conn.conn_type!r} is no database")
    return hook.get_conn()


def kms_client(conn_id: str) -> Any:
    """A KMS client of an ``aws`` connection. Raises ``PermanentError`` and ``TransientError`` of the look-up."""
    require_connection(conn_id, f"[{SECTION}] audit_signing_key")
    try:
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    except ImportError:
        raise KeyringError(
            f"[{SECTION}] audit_signing_key is in KMS, which needs: pip install 'airflow-ai-provider[amazon]'"
        ) from None
    return AwsBaseHook(aws_conn_id=conn_id, client_type="kms").get_conn()


def _policy_path(home: Path) -> Path:
    configured = option("policy_path")
    return _airflow_home() / Path(configured).expanduser() if configured else home / "policy.yaml"


def _dag_policy_path(policy: str | None, governing: Path) -> Path | None:
    """The DAG's own file; ``None`` where it names none, or the governing one. Raises ``PolicyError``."""
    if not policy:
        return None
    path = Path(policy).expanduser().absolute()
    with suppress(OSError, RuntimeError, ValueError):  # a loop of links, a null byte: not the governing file
        if path.resolve() == governing.resolve():
            return None
    if not _switch("allow_dag_policy"):
        raise PolicyError(
            f"policy={policy!r}: a task may not bring its own policy file; limits, masking, prices and grants come "
            f"from {governing} ([{SECTION}] policy_path). Remove the argument, or ask the administrator of this "
            f"Airflow to set [{SECTION}] allow_dag_policy = True, with which such a file may narrow that policy"
        )
    return path


def _switch(name: str) -> bool:
    """An option that is on or off. Raises ``PermanentError`` for what is neither."""
    text = option(name).lower()
    if text in ("true", "t", "1", "yes", "on"):
        return True
    if text in ("", "false", "f", "0", "no", "off"):
        return False
    raise PermanentError(f"[{SECTION}] {name} {text!r}: expected True or False")


def _from(option_name: str, read: Callable[[Any], _T]) -> _T | None:
    conn_id = option(option_name)
    if not conn_id:
        return None
    value = read(_connection(conn_id, f"[{SECTION}] {option_name}"))
    _mask_second_spellings(value)
    return value


def _days(option_name: str, default: int) -> int:
    text = option(option_name)
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise PermanentError(f"[{SECTION}] {option_name}: expected a number of days, at least 1")
    return int(text) if text else default


def _archive() -> tuple[str | None, Mapping[str, Any]]:
    uri = option("archive_uri")
    return _split_store(uri, f"[{SECTION}] archive_uri") if uri else (None, {})


def _split_store(uri: str, asked_by: str) -> tuple[str, Mapping[str, Any]]:
    """``s3://CONN_ID@bucket/prefix``, as Airflow's own object storage writes it, is a plain URI and its options."""
    if not (match := _STORE_WITH_CONNECTION.match(uri)):
        return uri, {}
    conn = _connection(match["conn_id"], asked_by)
    return f"{match['scheme']}://{match['rest']}", connections.storage_options(conn)


def require_connection(conn_id: str, asked_by: str) -> None:
    """Raises ``PermanentError``, naming who asked, where a connection does not exist."""
    _connection(conn_id, asked_by)


def _connection(conn_id: str, asked_by: str) -> Any:
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise PermanentError(
            f"connection {conn_id!r}, named by {asked_by}, does not exist; add it in Admin → Connections, "
            f"in your secrets backend, or as AIRFLOW_CONN_{conn_id.upper()}"
        ) from None
    except AirflowRuntimeError as error:
        raise TransientError(
            f"connection {conn_id!r}, named by {asked_by}, could not be fetched ({error.error.error.value})"
        ) from None


def _mask(*secrets: str) -> None:
    from airflow.sdk.log import mask_secret

    for secret in secrets:
        mask_secret(secret)


def _mask_second_spellings(value: object) -> None:
    """Mask what Airflow's own masking of the connection does not see: quoted passwords of URLs, keys of a keyring."""
    match value:
        case str() if found := re.search(r"://[^/@:]*:([^/@]+)@", value):
            _mask(found[1])
        case Mapping():
            for inner in value.values():
                _mask(*([inner] if isinstance(inner, str) and len(inner) >= _SHORTEST_KEY else []))
                _mask_second_spellings(inner)


def _airflow_home() -> Path:
    return Path(os.path.expandvars(os.environ.get("AIRFLOW_HOME", "~/airflow"))).expanduser().absolute()
