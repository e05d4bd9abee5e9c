"""What the commands of ``airflow ai`` share: exit status, tables, and lines for people."""

from __future__ import annotations

import functools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from airflow.cli.simple_table import AirflowConsole
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from rich.markup import escape

from airflow_ai_provider.errors import AIProviderError

GOOD, FINDING, COULD_NOT_RUN = 0, 1, 2


def command(run: Callable[[Namespace], int]) -> Callable[[Namespace], None]:
    """Give a command its exit status, and one line instead of a traceback where it could not run."""

    @functools.wraps(run)
    def wrapped(args: Namespace) -> None:
        # Outside tasks, Airflow looks into its own database for connections only in a server's context.
        os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
        try:
            status = run(args)
        except AIProviderError as error:
            print(f"error: {error}", file=sys.stderr)
            status = COULD_NOT_RUN
        if status != GOOD:
            raise SystemExit(status)

    return providers_configuration_loaded(suppress_logs_and_warning(wrapped))


def show(rows: Sequence[Mapping[str, Any]], output: str) -> None:
    """Print rows as ``--output`` asks."""
    # A table's cells are rich markup, in which "[ai]" would be a style.
    shown = (lambda value: escape(str(plain(value)))) if output == "table" else plain
    AirflowConsole().print_as([{name: shown(value) for name, value in row.items()} for row in rows], output)


def say(args: Namespace, text: str) -> None:
    """A line for people: programs read only what they asked for."""
    print(text, file=sys.stdout if args.output in ("table", "plain") else sys.stderr)


def plain(value: Any) -> Any:
    """Money as digits, never as an exponent."""
    return f"{value:f}" if isinstance(value, Decimal) else value


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for long work, where that is a terminal; told ``(done, total)``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
