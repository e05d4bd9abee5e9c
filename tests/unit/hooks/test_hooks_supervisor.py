"""Whether a task's supervisor lives, as the task can tell."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import CommsDecoder

from airflow_ai_provider.hooks.tasks import watch_supervisor


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The supervisor's end of the channel to this process, as a task runner has it."""
    mine, of_task = socket.socketpair()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", CommsDecoder(socket=of_task), raising=False)
    yield mine
    mine.close()
    of_task.close()


def test_a_supervisor_lives_until_its_channel_hangs_up(supervisor: socket.socket) -> None:
    """Also where another process, such as sudo, stands between the two."""
    lives = watch_supervisor()
    assert lives is not None
    assert lives()
    supervisor.close()
    assert not lives()


def test_what_a_supervisor_says_is_left_to_be_read(supervisor: socket.socket) -> None:
    lives = watch_supervisor()
    assert lives is not None
    supervisor.send(b"a reply that is waiting")
    assert lives()
    assert task_runner.SUPERVISOR_COMMS.socket.recv(7) == b"a reply"  # type: ignore[attr-defined]


def test_a_task_whose_parent_is_another_one_than_before_is_an_orphan(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something else has inherited the channel and keeps it open."""
    lives = watch_supervisor()
    assert lives is not None
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not lives()


@pytest.mark.parametrize("comms", [None, object()])
def test_without_a_supervisor_there_is_nothing_to_watch(comms: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """``dag.test()`` has a channel without a socket."""
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    assert watch_supervisor() is None
    monkeypatch.delitem(sys.modules, "airflow.sdk.execution_time.task_runner")
    assert watch_supervisor() is None
