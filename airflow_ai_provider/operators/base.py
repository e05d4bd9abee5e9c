"""What every operator shares: redacted logs, errors that Airflow understands, and a kill that stops the work."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_ai_provider.core.errors import AIProviderError, PermanentError, SourceError, TransientError
from airflow_ai_provider.core.rows.shard import Shard, parse_shard

_TERMINATED = 143
"""Exit status of a process that SIGTERM ended: 128 + 15."""


@contextmanager
def governed_task() -> Iterator[None]:
    """Redact the package's logs, and raise its errors as Airflow's: a transient one may be retried by Airflow, any
    other fails the task at once.

    Every method of a task that Airflow calls works within this. The chain is cut: a library's error below ours may
    carry values of rows, ours never does.
    """
    from airflow_ai_provider.core.privacy.leak_guard import redact_package_logs  # not while DAG files are parsed

    redact_package_logs()
    try:
        yield
    except TransientError as error:
        raise AirflowException(str(error)) from None
    except AIProviderError as error:
        raise AirflowFailException(str(error)) from None


class AIBaseOperator(BaseOperator):
    """An operator that hands its work to the core: subclasses implement ``run``."""

    def execute(self, context: Context) -> Any:
        with governed_task():
            return self.run(context)

    def run(self, context: Context) -> Any:
        """Do the work; what it returns goes to XCom and holds no row data."""
        raise NotImplementedError

    def on_kill(self) -> None:
        """Stop. Airflow calls this from its SIGTERM handler and otherwise lets the task go on.

        ``SystemExit`` leaves whatever runs here; a job's event loop, in a thread of its own, then sends nothing more,
        waits a while for what is out, and settles it. Airflow retries the task if it has tries left.
        """
        if isinstance(sys.exc_info()[1], AirflowTaskTimeout):
            return  # already on its way out, as a time-out
        self.log.warning("stopped on request; what was finished is kept and a retry goes on from there")
        raise SystemExit(_TERMINATED)


def require_text(operator: str, **values: object) -> None:
    """At parse time: each value is a text that is not empty. Values that Airflow fills in later pass."""
    for name, value in values.items():
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{operator}: {name} is empty")
        if value is None:
            raise ValueError(f"{operator}: {name} is required")


def parse_time_shard(value: Shard | Mapping[str, Any] | str | None) -> Shard:
    """A shard, or ``ValueError``, as Airflow expects of arguments that are wrong in the DAG file."""
    try:
        return parse_shard(value)
    except SourceError as error:
        raise ValueError(str(error)) from None


def at_least_one(name: str, value: int) -> int:
    """``value``, or ``ValueError`` where it is below 1."""
    if value < 1:
        raise ValueError(f"{name} {value}: expected 1 or more")
    return value


def day_of(text: str | None) -> date | None:
    """The day that a rendered argument names, such as ``2025-01-31`` or a time of it. Raises ``PermanentError``."""
    if not text:
        return None
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise PermanentError(f"{text!r}: expected a day such as 2025-01-31") from None
