"""What the commands of ``airflow ai`` share: exit status, tables, and lines for people."""

from __future__ import annotations

import functools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from airflow.cli.simple_table import AirflowConsole
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from rich.markup import escape

from airflow_ai_provider.core.errors import AIProviderError, PermanentError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

GOOD, FINDING, COULD_NOT_RUN = 0, 1, 2


class Told(Protocol):
    """Told how much is done, and of how much where that is known."""

    def __call__(self, done: int, total: int | None = None, /) -> None: ...


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


def refuse_inside_task() -> None:
    """Print an error and exit with status 2 inside an Airflow task."""
    from airflow_ai_provider.core.administration.people import require_person

    try:
        require_person("this command changes the installation and cannot run")
    except PermanentError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(COULD_NOT_RUN) from None


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
def progress(label: str, total: Callable[[], int] | None = None) -> Iterator[Told]:
    """A bar on standard error for long work, where that is a terminal.

    ``total`` counts what is to be done, for work that does not say it; it is asked on a terminal only.
    """
    with bars(label) as (told,):
        if total is not None and sys.stderr.isatty():
            told(0, total())
        yield told


@contextmanager
def bars(*labels: str) -> Iterator[list[Told]]:
    """The same for work that goes on in several places: a bar for each."""
    if not sys.stderr.isatty():
        yield [lambda done, total=None: None for _ in labels]
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    counted = TextColumn("{task.fields[counted]}")
    columns = (TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield [partial(_told, shown, shown.add_task(label, total=None, counted="")) for label in labels]


def _told(shown: Progress, task: TaskID, done: int, total: int | None = None) -> None:
    shown.update(task, completed=done, total=total)
    of = shown.tasks[task].total
    shown.update(task, counted=f"{done:,}" if of is None else f"{done:,}/{of:,.0f}")
