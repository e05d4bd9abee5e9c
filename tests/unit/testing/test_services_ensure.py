"""scripts/ensure_services.py: installs what is missing where it may, and says what to run where it may not."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "ensure_services.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """The script on a machine of its own: no servers, an apt-get that installs them, and its own policy-rc.d."""
    spec = importlib.util.spec_from_file_location("ensure_services", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        'test "${*#*install}" = "$*" && exit 0\n'
        f'test -x {tmp_path}/policy-rc.d && test -z "$REFUSE" && touch {tmp_path}/installed\n'
    )
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")

    def installed() -> Path | None:
        return tmp_path / "installed" if (tmp_path / "installed").exists() else None

    module.FINDERS = {"postgresql": installed, "redis-server": installed}  # type: ignore[attr-defined]
    module.OPTIONAL = {}  # type: ignore[attr-defined]
    module.POLICY = tmp_path / "policy-rc.d"  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "root_prefix", list)
    monkeypatch.setattr("sys.argv", ["ensure_services.py"])
    return module


def test_it_installs_what_is_missing_once_and_starts_nothing(script: types.ModuleType, tmp_path: Path) -> None:
    """While packages are installed, policy-rc.d keeps their services from starting; afterwards it is gone again."""
    assert script.main() == 0
    assert script.main() == 0
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("install --no-install-recommends postgresql redis-server")
    assert not script.POLICY.exists()


def test_a_policy_that_was_there_stays(script: types.ModuleType) -> None:
    script.POLICY.write_text("#!/bin/sh\nexit 101\n")
    script.POLICY.chmod(0o755)
    assert script.main() == 0
    assert script.POLICY.exists()


def test_without_permission_it_names_the_packages_and_the_command(
    script: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "root_prefix", lambda: None)
    assert script.main() == 1
    said = capsys.readouterr().err
    assert "installing needs root, or sudo without a password" in said
    assert "sudo apt-get install postgresql redis-server" in said
    assert not (tmp_path / "calls").exists()


def test_a_failed_installation_is_told(
    script: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFUSE", "yes")
    assert script.main() == 1
    assert "apt-get ended with status" in capsys.readouterr().err
    assert not script.POLICY.exists()


def test_a_check_installs_nothing(script: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["ensure_services.py", "--check"])
    assert script.main() == 1
    assert not (tmp_path / "calls").exists()


def test_what_is_optional_is_installed_where_it_can_be(script: types.ModuleType, tmp_path: Path) -> None:
    def found() -> Path | None:
        return tmp_path if "radosgw" in (tmp_path / "calls").read_text() else None

    script.OPTIONAL = {"ceph": (("radosgw", "ceph-mon"), found)}  # type: ignore[attr-defined]
    assert script.main() == 0
    assert script.main() == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if "radosgw" in call] == [calls[-1]]
    assert calls[-1].endswith("install --no-install-recommends radosgw ceph-mon")


def test_what_is_optional_and_cannot_be_had_is_told_and_no_failure(
    script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    script.OPTIONAL = {"ceph": (("radosgw",), lambda: None)}  # type: ignore[attr-defined]
    assert script.main() == 0
    assert "ceph: not installed" in capsys.readouterr().out
