"""What the commands print: bars for people at a terminal, and nothing of the kind for anybody else."""

from __future__ import annotations

import pytest

from airflow_ai_provider.cli.output import bars, progress


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with bars("lines read", "attempts matched") as (read, matched):
        read(1234)
        matched(567, 9000)
    out, err = capsys.readouterr()
    assert ("1,234" in err and "567/9,000" in err) is terminal
    assert not out


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_to_be_done_is_counted_only_for_who_sees_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    counted: list[int] = []
    with progress("rows priced", lambda: counted.append(1) or 50) as told:
        told(20)
        told(40)
    assert bool(counted) is terminal
    assert ("40/50" in capsys.readouterr().err) is terminal
