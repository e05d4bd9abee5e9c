"""Hosts that share a ledger and not their keys: no call is made, nothing is sealed, and the message says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.pipeline import House

from airflow_ai_provider.core.administration.audit import seal_audit, verify_audit
from airflow_ai_provider.core.administration.reuse import subjects_of
from airflow_ai_provider.core.audit.sealing.signing import SIGNING_KEY
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.plan import plan_spend
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.schema import ai_keys
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, fresh_keyring, with_fresh_key
from airflow_ai_provider.errors import KeyringError
from airflow_ai_provider.testing.vendor import VendorDouble


@pytest.fixture
def hosts(tmp_path: Path, vendor: VendorDouble) -> tuple[House, House]:
    """Two homes, one ledger, one archive."""
    shared: dict[str, Any] = {
        "ledger_url": f"sqlite:///{tmp_path / 'ledger.db'}",
        "archive_uri": str(tmp_path / "archive"),
    }
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (House(folder, vendor, **shared) for folder in folders)
    return one, two


def using(house: House, **settings: Any) -> House:
    house.settings = replace(house.settings, **settings)
    return house


def share(one: House, two: House, *names: str) -> None:
    """Copy files of a home to the other."""
    for name in names:
        target = two.settings.home / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one.settings.home / name, target)


def age_keys(house: House) -> None:
    with open_ledger(house.settings.ledger_url, house.settings.home) as ledger, ledger.write() as conn:
        for row in conn.execute(sa.select(ai_keys)).all():
            mine = sa.update(ai_keys).where(ai_keys.c.purpose == row.purpose, ai_keys.c.key_id == row.key_id)
            conn.execute(mine.values(active_since=row.active_since and row.active_since - timedelta(hours=2)))


def test_a_second_home_without_the_keyring_makes_no_call_and_no_keyring(
    hosts: tuple[House, House], vendor: VendorDouble
) -> None:
    one, two = hosts
    one.run(["a question"])
    paid = len(vendor.requests())
    with pytest.raises(KeyringError, match=r"there is none, and host .* paid twice.*keyring_conn_id.*keys adopt"):
        two.run(["a question"], run_id="run-2")
    assert len(vendor.requests()) == paid
    assert not (two.settings.home / "keyring.json").exists()
    share(one, two, "keyring.json")
    assert two.run(["a question"], run_id="run-2").column("status") == ["ok"]


@pytest.mark.parametrize(
    "use",
    [
        lambda house: house.run(["a question"]),
        lambda house: plan_spend(house.job(["a question"]), Caller("dag", "r", "t"), house.settings),
        lambda house: subjects_of(house.settings, named=(), values=("ada@example.org",)),
        lambda house: verify_audit(house.settings),
    ],
    ids=["task", "plan", "reuse", "verify"],
)
def test_another_keyring_is_refused_wherever_it_is_used(
    hosts: tuple[House, House], use: Callable[[House], object]
) -> None:
    one, two = hosts
    one.run(["a question"])
    seal_audit(one.settings)
    shutil.copytree(one.settings.home / "audit" / "keys", two.settings.home / "audit" / "keys")
    using(two, keyring=fresh_keyring())
    with pytest.raises(KeyringError, match="is not among the keys of this host"):
        use(two)


def test_a_key_of_the_same_id_and_another_secret_is_refused(hosts: tuple[House, House]) -> None:
    one, two = hosts
    content = fresh_keyring()
    other = {**content, "keys": {content["active"]: next(iter(fresh_keyring()["keys"].values()))}}
    using(one, keyring=content).run(["a question"])
    with pytest.raises(KeyringError, match="is another key here than on host"):
        using(two, keyring=other).run(["a question"])


def test_a_rotation_on_one_host_warns_the_other_and_then_refuses_it(
    hosts: tuple[House, House], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = hosts
    before = fresh_keyring()
    after = with_fresh_key(before)
    using(one, keyring=before).run(["a question"])
    using(two, keyring=before).run(["a question"], run_id="two-1")
    using(one, keyring=after).run(["a question"], run_id="one-2")
    two.run(["a question"], run_id="two-2")
    assert after["active"] in caplog.text
    age_keys(one)
    with pytest.raises(KeyringError, match=after["active"]):
        two.run(["a question"], run_id="two-3")
    using(two, keyring=after).run(["a question"], run_id="two-3")


def test_no_secret_is_in_the_database_or_in_messages(hosts: tuple[House, House], tmp_path: Path) -> None:
    one, two = hosts
    content = fresh_keyring()
    using(one, keyring=content).run(["a question"])
    with pytest.raises(KeyringError) as refused:
        using(two, keyring=fresh_keyring()).run(["a question"])
    secret = content["keys"][content["active"]]["secret"]
    (row,) = [row for row in one._table(ai_keys) if row["purpose"] == "keyring"]
    keyring = Keyring.from_mapping(content)
    for told in (str(row), str(refused.value)):
        assert secret not in told
        assert keyring.derive("fingerprint", length=32).hex() not in told


def test_a_second_sealer_with_a_key_of_its_own_seals_nothing(hosts: tuple[House, House]) -> None:
    one, two = hosts
    seal_audit(one.settings)
    with pytest.raises(KeyringError, match=r"signing main of host .* does not verify.*audit_signing_key"):
        seal_audit(two.settings)
    assert not (two.settings.home / "audit" / "keys" / SIGNING_KEY).exists(), "no key is made beside another host's"
    assert verify_audit(one.settings).findings == []
    share(one, two, f"audit/keys/{SIGNING_KEY}")
    seal_audit(two.settings)
    assert verify_audit(two.settings).findings == []
    assert verify_audit(one.settings).findings == []


def test_a_key_that_was_there_already_is_refused_as_well(hosts: tuple[House, House]) -> None:
    one, two = hosts
    shared = two.settings
    seal_audit(using(two, ledger_url=None, archive_uri=None).settings)  # it had a ledger and an archive of its own
    two.settings = shared
    seal_audit(one.settings)
    with pytest.raises(KeyringError, match="is not among the keys of this host"):
        seal_audit(two.settings)


def test_a_verifier_without_the_verify_key_is_told_which_host_has_it(hosts: tuple[House, House]) -> None:
    one, two = hosts
    seal_audit(one.settings)
    with pytest.raises(KeyringError, match=r"the verify key of .* \(of host .*\) is not in .*verify_key-\*\.pem"):
        verify_audit(two.settings)
    (key,) = (one.settings.home / "audit" / "keys").glob("verify_key*.pem")
    assert verify_audit(two.settings, keys=key).findings == []
    share(one, two, f"audit/keys/{key.name}")
    assert verify_audit(two.settings).findings == []


def test_a_signing_key_is_changed_in_place_as_ever(hosts: tuple[House, House]) -> None:
    one, two = hosts
    seal_audit(one.settings)
    (one.settings.home / "audit" / "keys" / SIGNING_KEY).unlink()
    seal_audit(one.settings)
    assert verify_audit(one.settings).findings == []
    shutil.copytree(one.settings.home / "audit" / "keys", two.settings.home / "audit" / "keys")
    seal_audit(two.settings)
    assert verify_audit(two.settings).findings == []


def test_an_auditor_without_keyring_verifies(hosts: tuple[House, House]) -> None:
    one, two = hosts
    one.run(["a question"])
    seal_audit(one.settings)
    (key,) = (one.settings.home / "audit" / "keys").glob("verify_key*.pem")
    assert verify_audit(two.settings, keys=key).findings == []
    assert not (two.settings.home / "keyring.json").exists()
