"""Names in free text, by whatever the deployment has for it: an optional backend beside the known values.

A backend takes a text and returns pairs of offsets, each a name. It is foreign code: it runs in a thread of its own
with a time limit, what it returns is checked, and whatever goes wrong stops the call. Nothing here imports spaCy
unless a profile asks for it.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.privacy.spans import Span

NameBackend = Callable[[str], Iterable[tuple[int, int]]]
"""Text → start and end of each name, in code points. Overlaps are resolved."""

PERSON = "PERSON"
SECONDS = 10.0
"""Time limit for one text. A hold on a budget counts as abandoned after 60 s without a sign of life."""
_MOST_HANGS = 3
"""Threads that may be left hanging before the backend is not asked any more."""


def load_backend(name: str) -> NameBackend:
    """Return the backend that a profile names: ``presidio``, or ``module:function``. Raises ``PrivacyError``."""
    if name == "presidio":
        return _presidio()
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise PrivacyError(f"masking: names: {name!r}: expected presidio, or module:function")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PrivacyError(f"masking: names: {name!r} cannot be imported ({type(error).__name__})") from None
    if not callable(backend):
        raise PrivacyError(f"masking: names: {name!r} is not callable; expected a function from a text to spans")
    found: NameBackend = backend
    return found


def _presidio() -> NameBackend:
    """Presidio's analyser for English names, with the spaCy model that it is installed with."""
    try:
        from presidio_analyzer import AnalyzerEngine
    except ImportError:
        raise PrivacyError(
            "masking: names: presidio is not installed; run: pip install 'airflow-ai-provider[presidio]' "
            "and python -m spacy download en_core_web_lg"
        ) from None
    try:
        engine = AnalyzerEngine()
    except (Exception, SystemExit) as error:  # noqa: BLE001  spaCy exits the process where a model cannot be fetched
        raise PrivacyError(
            f"masking: names: presidio cannot start ({type(error).__name__}); it needs a spaCy model: "
            "python -m spacy download en_core_web_lg"
        ) from None

    def find(text: str) -> list[tuple[int, int]]:
        return [(found.start, found.end) for found in engine.analyze(text, language="en", entities=[PERSON])]

    return find


class NameFinder:
    """Asks a backend, within bounds. Safe to share between threads; texts are taken one after the other."""

    def __init__(self, backend: NameBackend, *, seconds: float = SECONDS) -> None:
        self._backend = backend
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._hangs = 0

    def find(self, text: str) -> list[Span]:
        """Return the names in a text. Raises ``PrivacyError`` if the backend fails, hangs or returns nonsense."""
        with self._lock:
            returned = self._ask(text)
        return [_span(pair, len(text)) for pair in returned]

    def _ask(self, text: str) -> list[Any]:
        if self._hangs >= _MOST_HANGS:
            raise PrivacyError("masking: names: the backend hung too often and is not asked any more; restart the task")
        worker = self._worker = self._worker or _Worker(self._backend)
        try:
            return worker.ask(text, self._seconds)
        except queue.Empty:
            self._worker, self._hangs = None, self._hangs + 1
            raise PrivacyError(f"masking: names: no answer within {self._seconds:g} s; nothing was sent") from None
        except BaseException:
            self._worker = None  # interrupted while it waited: the late answer must not be taken for the next text's
            raise


class _Worker:
    """A daemon thread that calls the backend; one that hangs is left behind and does not keep the process alive."""

    def __init__(self, backend: NameBackend) -> None:
        self._backend = backend
        self._texts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[list[Any] | str] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="airflow-ai-names", daemon=True).start()

    def ask(self, text: str, seconds: float) -> list[Any]:
        """Raises ``queue.Empty`` if there is no answer in time."""
        self._texts.put(text)
        answer = self._answers.get(timeout=seconds)
        if isinstance(answer, str):
            raise PrivacyError(f"masking: names: the backend failed ({answer}); nothing was sent")
        return answer

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            try:
                self._answers.put(list(self._backend(text)))
            except BaseException as error:  # noqa: BLE001  its message may quote the text, so only its type goes on
                self._answers.put(type(error).__name__)


def _span(pair: Any, length: int) -> Span:
    """A backend's pair as a span. Raises ``PrivacyError`` unless it lies within the text."""
    match pair:
        case (int(start), int(end)) if 0 <= start < end <= length:
            return Span(start, end, PERSON)
    raise PrivacyError("masking: names: the backend returned a span that is not within the text; nothing was sent")
