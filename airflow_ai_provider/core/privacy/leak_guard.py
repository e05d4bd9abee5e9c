"""The last check for personal values in what leaves the process: requests and log lines.

The leak guard: a last check of what is about to be sent.

Masking is one piece of code, and any code can be wrong or be bypassed. The guard knows nothing of it: it searches the
finished text for validated values, and one that is there stops the call.

Keeps validated values out of the package's log.

Our own messages hold none. This is for those that come by way of an error of a library, or of a change to come.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable

from airflow_ai_provider.core.errors import PrivacyError
from airflow_ai_provider.core.privacy.detectors.detector import Detector
from airflow_ai_provider.core.privacy.detectors.text_view import Span


class LeakGuard:
    """Looks for validated values of the given kinds. Safe to share between threads."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @classmethod
    def of(cls, names: Iterable[str]) -> LeakGuard:
        """A guard for kinds or groups of kinds. Raises ``PrivacyError`` for an unknown name."""
        return cls(Detector(names, by_word=False))

    def findings(self, text: str) -> list[Span]:
        """The validated values in ``text``."""
        return self._detector.find(text)

    def check(self, text: str, *, place: str) -> None:
        """Raise ``PrivacyError``, which names place and kind and not the value, if a validated value is in ``text``."""
        found = self.findings(text)
        if found:
            kinds = ", ".join(sorted({span.entity for span in found}))
            raise PrivacyError(f"{place} holds a value of kind {kinds}; nothing was sent")

    def redact(self, text: str) -> str:
        """Return ``text`` with ``[kind]`` for each validated value."""
        pieces: list[str] = []
        position = 0
        for start, end, entity in self.findings(text):
            pieces += text[position:start], f"[{entity}]"
            position = end
        return "".join((*pieces, text[position:])) if pieces else text


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
