"""Keeps validated values out of the package's log.

Our own messages hold none. This is for those that come by way of an error of a library, or of a change to come.
"""

from __future__ import annotations

import logging
import traceback

from airflow_ai_provider.privacy.guard import LeakGuard

PACKAGE = "airflow_ai_provider"
KINDS = ("secret", "email", "iban", "cn_id", "card", "ssn", "phone")
"""What is looked for in a record: addresses of servers and dates belong into a log."""


class RedactingFilter(logging.Filter):
    """Replaces validated values by their kind in a record's message, arguments and exception. Passes every record."""

    def __init__(self) -> None:
        super().__init__()
        self._guard = LeakGuard.of(KINDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Never raises: a record that cannot be looked at loses its text instead."""
        try:
            self._redact(record)
        except Exception as error:  # noqa: BLE001  a log line must not end a task, nor pass unseen
            record.msg, record.args = (
                f"a log message could not be searched ({type(error).__name__}) and was left out",
                (),
            )
            record.exc_info = record.exc_text = record.stack_info = None
        return True

    def _redact(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        redacted = self._guard.redact(message)
        if redacted != message:
            record.msg, record.args = redacted, ()
        if record.exc_info and record.exc_info[0] is not None:
            self._redact_exception(record)
        if record.stack_info:
            record.stack_info = self._guard.redact(record.stack_info)

    def _redact_exception(self, record: logging.LogRecord) -> None:
        """An exception with a value in it becomes text: handlers format the object anew, each in its own way."""
        assert record.exc_info is not None
        written = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        redacted = self._guard.redact(written)
        if redacted != written:
            record.msg, record.args = f"{record.getMessage()}\n{redacted}", ()
            record.exc_info = record.exc_text = None


_NAME = "airflow-ai-redaction"


class _Silent(logging.Handler):
    """Writes nothing; it is there for its filter."""

    def emit(self, record: logging.LogRecord) -> None:
        """Nothing: the record goes on to the handlers further up, as its filter left it."""


def redact_package_logs() -> None:
    """From now on every record of the package's loggers is redacted before any handler further up sees it.

    A filter on a logger does not see records of its children, so it is put on a handler that all of them pass. Harmless
    twice.
    """
    logger = logging.getLogger(PACKAGE)
    if any(handler.name == _NAME for handler in logger.handlers):
        return
    handler = _Silent()
    handler.name = _NAME
    handler.addFilter(RedactingFilter())
    logger.addHandler(handler)
