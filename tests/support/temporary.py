"""A folder for everything that a run of the tests, and every process that it starts, writes to the temporary folder.

It is removed when the run ends: also what a killed process left, and also when the run itself is killed.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile

_FOLDER = "AI_TESTS_FOLDER"
_SYSTEM_FOLDER = "PYTEST_DEBUG_TEMPROOT"
_REMOVE = (
    "trap '' HUP INT TERM; read -r _; tries=0; "
    'while rm -rf -- "$1"; [ -e "$1" ] && [ $tries -lt 30 ]; do sleep 1; tries=$((tries + 1)); done'
)
"""For a shell whose standard input closes when the run ends. Servers that still write are killed by then or soon."""


def use_own_folder() -> None:
    """Let ``tempfile`` use a new folder, here and in the processes started from now on.

    Workers of pytest-xdist share their controller's. pytest's own folders (``tmp_path``) stay where they were, so that
    a failed test's can be looked at.
    """
    if _FOLDER in os.environ:
        return
    os.environ.setdefault(_SYSTEM_FOLDER, tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="ai-tests-")
    os.chmod(folder, 0o711)  # servers of another user have their folders in it
    os.environ |= {_FOLDER: folder, "TMPDIR": folder}
    tempfile.tempdir = None
    # Its stdin is held by this process alone and closes with it.
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", _REMOVE, "remove", folder], stdin=subprocess.PIPE, cwd="/", start_new_session=True
    )
    atexit.register(_end, watcher, folder, os.getpid())


def _end(watcher: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    if os.getpid() != owner:  # a forked child that runs its parent's exit functions
        return
    shutil.rmtree(folder, ignore_errors=True)
    watcher.communicate()
