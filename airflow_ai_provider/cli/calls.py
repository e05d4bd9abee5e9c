"""What a command calls when it runs, and whether it changes anything: changes are refused inside a task."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

from airflow.cli.cli_config import lazy_load_command

from airflow_ai_provider.cli.arguments import CLI


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
