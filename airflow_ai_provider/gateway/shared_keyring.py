"""The keyring of an installation, once it is known to be the one that all hosts on its ledger use."""

from __future__ import annotations

from airflow_ai_provider.errors import KeyringError
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.ledger.database import Ledger
from airflow_ai_provider.ledger.shared_keys import KEYRING, HostKeys, check_keys, current_key, explain, registered_keys
from airflow_ai_provider.privacy.keyring import Keyring, open_keyring


def open_shared_keyring(settings: Settings, ledger: Ledger, *, create: bool = True, register: bool = True) -> Keyring:
    """Open the keyring and compare it with the one that is registered in the ledger.

    The file is made where there is none (``create``) and no other host has one; keys that are new are registered
    (``register``). Raises ``KeyringError`` where the keyring cannot be opened or is not the installation's, and
    ``LedgerUnavailable``.
    """
    current = current_key(registered_keys(ledger, KEYRING))  # before the file is looked for, which is made first
    if create and current is not None and not settings.keyring and not (settings.home / "keyring.json").exists():
        mismatch = f"there is none, and host {current.host} writes with key {current.key_id}"
        raise KeyringError(explain(KEYRING, mismatch, _remedy(settings)))
    keyring = open_keyring(settings.keyring, settings.home, create=create)
    check_keys(ledger, keyring_of(settings, keyring), register=register)
    return keyring


def keyring_of(settings: Settings, keyring: Keyring) -> HostKeys:
    """A keyring as it is compared with other hosts'."""
    return HostKeys(KEYRING, keyring.fingerprints(), keyring.active, _remedy(settings))


def _remedy(settings: Settings) -> str:
    return (
        "Give all hosts the same keyring: name one connection in [ai] keyring_conn_id, or copy that host's keyring.json"
        f" to {settings.home / 'keyring.json'}. Only where that key is lost for good: airflow ai keys adopt keyring"
    )
