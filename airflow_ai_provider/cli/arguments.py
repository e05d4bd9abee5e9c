"""Arguments of the commands, and which commands change something.

How the commands' arguments are read. Every ``airflow`` call imports this, so it imports nothing of the core.

What a command calls when it runs, and whether it changes anything: changes are refused inside a task.
"""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from airflow.cli.cli_config import Arg, lazy_load_command

CLI = "airflow_ai_provider.cli"
"""Where the commands are; they are imported when they run."""

PERIODS = ("day", "week", "month", "run", "total")
GROUPINGS = tuple("hour day week month team dag task run model provider route tier deployment".split())
"""What costs can be grouped by; the ledger's report knows the same names."""
REPRICED_BY = ("day", "team", "dag", "task", "model", "route", "deployment")
"""What other prices can be grouped by; the ledger knows the same names."""

INVOICE_FORMATS = ("csv", "openai-usage", "openai-costs", "anthropic-usage", "anthropic-costs")
"""The exports that can be read; the ledger knows the same names."""

REVIEW_STATUSES = ("open", "answered", "decided")
REVIEW_DECISIONS = ("accepted", "rejected", "corrected")
"""What an answer that waits for a person can be, and be given; the ledger knows the same names."""


def groupings(text: str, known: Sequence[str] = GROUPINGS) -> list[str]:
    """Read ``team,model``; order is kept. Raises ``argparse.ArgumentTypeError`` for an unknown or repeated name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names) or not set(names) <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(known)}, each once")
    return names


def names(text: str) -> list[str]:
    """Read ``small,large``. Raises ``argparse.ArgumentTypeError`` where there is none."""
    if not (found := [name.strip() for name in text.split(",") if name.strip()]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names, comma-separated")
    return found


def day(text: str) -> date:
    """Read ``2025-01-31``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a day such as 2025-01-31") from None


def usd(text: str) -> Decimal:
    """Read an amount in USD. Raises ``argparse.ArgumentTypeError`` for what is none."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an amount in USD such as 250.00")
    return amount


def column_default(text: str) -> tuple[str, str]:
    """Read ``context=some text``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected COLUMN=TEXT")
    return name.strip(), value


def last(text: str) -> str:
    """Check ``24h``, ``7d`` or ``4w``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    if not re.fullmatch(r"[1-9]\d{0,4}[hdw]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected hours, days or weeks such as 24h, 7d or 4w")
    return text


def count(text: str) -> int:
    """Read a whole number of 1 or more. Raises ``argparse.ArgumentTypeError`` for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def arg(*flags: str, **settings: Any) -> Arg:
    """An argument; ``settings`` are those of ``argparse``."""
    return Arg(flags, **settings)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class CommandCall:
    """Runs a command's function; imports it only then. Made by ``reads``, ``changes`` and ``seals``."""

    function: str
    """``module.function`` below ``airflow_ai_provider.cli``."""
    kind: str
    """``reads``, ``changes``, or ``seals`` (adds to archive and index what the trail already holds)."""
    only_with: str = ""
    """Option without which the command only reads."""
    unless: str = ""
    """Option with which the command only reads."""

    def __call__(self, args: Namespace) -> None:
        """Run the command. Exits with status 2 where it would change something inside a task."""
        if self.changes_with(args):
            from airflow_ai_provider.cli.output import refuse_inside_task

            refuse_inside_task()
        lazy_load_command(f"{CLI}.{self.function}")(args)

    def changes_with(self, args: Namespace) -> bool:
        """Tell whether the command changes something when it is given these arguments."""
        if self.kind != "changes" or (self.unless and getattr(args, self.unless)):
            return False
        return not self.only_with or bool(getattr(args, self.only_with))


def reads(function: str) -> CommandCall:
    """Declare a command that changes nothing; files that it is told to write do not count."""
    return CommandCall(function, "reads")


def changes(function: str, *, only_with: str = "", unless: str = "") -> CommandCall:
    """Declare a command that changes limits, pins, keys, reviews, stops, stored answers or the ledger."""
    return CommandCall(function, "changes", only_with, unless)


def seals(function: str) -> CommandCall:
    """Declare a command that only moves evidence on, as the operators of the audit trail do inside tasks."""
    return CommandCall(function, "seals")
