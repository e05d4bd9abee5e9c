"""One event is proved with nothing but the proof, the public key and a short script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.audit import House, overwrite

from airflow_ai_provider.core.audit.sealing.signing import public_keys
from airflow_ai_provider.core.audit.verify.proof import prove
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.errors import AuditError

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "verify_proof.py"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two writers, one with three segments, in two manifests."""
    house = House(tmp_path_factory.mktemp("audit") / "house")
    house.write(15, segment_events=6)
    house.seal()
    house.write(4)
    house.write(3)
    house.seal()
    return house


@pytest.fixture(scope="module")
def ids(house: House) -> list[str]:
    found: list[str] = []

    def see(document: dict[str, Any], body: bytes) -> None:
        found.append(document["event.id"])

    verify(house.archive, house.spool, house.store, public_keys(house.key), visit=see)
    return found


def verify_key(house: House) -> Path:
    (path,) = (house.root / "keys").glob("verify_key*.pem")
    return path


def check(proof: dict[str, Any], key: Path, folder: Path) -> tuple[int, str]:
    """The script in a process of its own that sees neither this package nor the user's."""
    path = folder / "proof.json"
    path.write_text(json.dumps(proof))
    ran = subprocess.run([sys.executable, "-I", str(SCRIPT), str(path), str(key)], capture_output=True, text=True)
    assert ran.returncode != 2, ran.stderr
    return ran.returncode, ran.stdout


def test_every_event_has_a_proof(house: House, ids: list[str], tmp_path: Path) -> None:
    assert len(ids) == 22
    for event_id in ids:
        proof = prove(house.archive, event_id)
        assert json.loads(proof["event"])["event.id"] == event_id
    for event_id in (ids[0], ids[14], ids[-1]):
        status, said = check(prove(house.archive, event_id), verify_key(house), tmp_path)
        assert (status, f"proved: event {event_id}" in said) == (0, True)


def test_the_script_is_short_and_needs_only_cryptography() -> None:
    source = SCRIPT.read_text()
    assert len(source.splitlines()) < 150
    imports = {line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))}
    assert imports - set(sys.stdlib_module_names) == {"cryptography"}


FORGERIES: dict[str, tuple[Change, str]] = {
    "event": (
        lambda proof: proof.update(event=proof["event"].replace("54000", "54001")),
        "not under the root of its segment",
    ),
    "record path": (lambda proof: proof["record"]["path"].reverse(), "not under the root of its segment"),
    "record index": (lambda proof: proof["record"].update(index=3), "not under the root of its segment"),
    "shorter path": (lambda proof: proof["record"]["path"].pop(), "shorter than its tree"),
    "longer path": (lambda proof: proof["record"]["path"].append("00" * 32), "longer than its tree"),
    "segment": (lambda proof: proof["segment"].update(seal="0" * 64), "not under the root of the statement"),
    "entry index": (lambda proof: proof["entry"].update(index=7), "outside its tree"),
    "statement": (lambda proof: proof["statement"].update(created_at="2025-01-01T00:00:00.000Z"), "signature is not"),
    "signature": (lambda proof: proof.update(signature="00" * 64), "signature is not"),
    "missing": (lambda proof: proof.pop("signature"), "not a whole proof"),
    "format": (lambda proof: proof.update(format="other"), "no proof"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_proof_is_refused(house: House, ids: list[str], tmp_path: Path, name: str) -> None:
    forge, message = FORGERIES[name]
    proof = prove(house.archive, next(each for each in ids if each.endswith("-1")))
    forge(proof)
    status, said = check(proof, verify_key(house), tmp_path)
    assert status == 1
    assert message in said


def test_another_key_proves_nothing(house: House, ids: list[str], tmp_path: Path) -> None:
    stranger = House(tmp_path / "stranger")
    assert stranger.key
    status, said = check(prove(house.archive, ids[0]), verify_key(stranger), tmp_path)
    assert (status, "was signed with key" in said) == (1, True)


def test_what_is_not_sealed_or_not_there_has_no_proof(house: House, ids: list[str], tmp_path: Path) -> None:
    copy = house.copy(tmp_path / "copy")
    (waiting, *_) = copy.write(1)
    for event_id in (waiting, "0" * 28 + "-1", f"{ids[0].rpartition('-')[0]}-99"):
        with pytest.raises(AuditError, match="not sealed yet, or does not exist"):
            prove(copy.archive, event_id)
    with pytest.raises(AuditError, match="expected a writer and a number"):
        prove(copy.archive, "nonsense")


def test_a_changed_segment_proves_nothing(house: House, ids: list[str], tmp_path: Path) -> None:
    copy = house.copy(tmp_path / "copy")
    for path in copy.objects("segments"):
        overwrite(path, path.read_bytes()[:-9])
    with pytest.raises(AuditError, match="not what was signed"):
        prove(copy.archive, ids[0])
    for path in copy.objects("segments"):
        path.unlink()
    with pytest.raises(AuditError, match="not in the archive"):
        prove(copy.archive, ids[0])
