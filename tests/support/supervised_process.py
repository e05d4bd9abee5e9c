"""A job below a supervisor, as Airflow has it: this process forks the job's, and answers nothing that it is asked.

    python -m support.supervised_process SPEC LOG OUTCOME supervised|sudo|alone

Prints a line once the job runs, and waits to be killed. With ``sudo`` another process stands between the two; with
``alone`` the job does not know that it is supervised, like a script that somebody started from a shell.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from pathlib import Path

from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import CommsDecoder

from support.map_process import work


def main(spec: str, log: str, outcome: str, mode: str) -> None:
    mine, of_task = socket.socketpair()
    if os.fork():
        of_task.close()
        print("started", flush=True)
        signal.pause()
    mine.close()
    if mode == "sudo" and (job := os.fork()):
        of_task.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]))
    if mode != "alone":
        task_runner.SUPERVISOR_COMMS = CommsDecoder(socket=of_task)  # type: ignore[attr-defined]
    work(pickle.loads(Path(spec).read_bytes()), Path(log), Path(outcome))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
