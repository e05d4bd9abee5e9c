"""Whether too many rows of a job ended with an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from airflow_ai_provider.errors import PermanentError, TransientError

_PASSING = frozenset(
    {
        "rate_limited",
        "timeout",
        "conflict",
        "server_error",
        "connection_refused",
        "connection_lost",
        "malformed",
        "unexplained",
        "certificate",
        "unknown_host",
        "circuit_open",
        "deadline",
    }
)
"""Kinds of errors for which a retry may help."""


class Outcome(Protocol):
    """What came of the rows of a job."""

    @property
    def sink(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def error(self) -> int:
        """Rows that ended with an error."""
        ...

    @property
    def errors(self) -> Mapping[str, int]:
        """Rows by kind of error."""
        ...


def check_error_rate(outcome: Outcome, limit: float, *, column: str = "error") -> None:
    """Raise where a greater share of rows ended with an error than ``limit``; ``column`` is the sink's that says why.

    Where most of them failed for reasons that may pass, such as an outage, it is a ``TransientError``, for which
    Airflow retries the task: finished parts and answers are kept. Otherwise it is a ``PermanentError``: asking again
    for rows that a vendor will never accept costs.
    """
    if not outcome.rows or outcome.error / outcome.rows <= limit:
        return
    counted = sorted(outcome.errors.items(), key=lambda item: -item[1])
    kinds = ", ".join(f"{kind} {count}" for kind, count in counted)
    passing = sum(count for kind, count in counted if kind in _PASSING)
    failure = TransientError if 2 * passing >= outcome.error else PermanentError
    raise failure(
        f"{outcome.error} of {outcome.rows} rows ended with an error, more than max_error_rate {limit:g} allows "
        f"({kinds or 'of unknown kind'}); the rows and their errors, in column {column}, are in {outcome.sink}"
    )
