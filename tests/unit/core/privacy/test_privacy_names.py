"""Names by a backend: bounded in time, checked in what it returns, and closed when it fails."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from airflow_ai_provider.core.privacy.detectors.names_and_addresses import NameFinder, load_backend
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules
from airflow_ai_provider.errors import PrivacyError

TEXT = "Ada Lovelace met Bo."


def by_capitals(text: str) -> Iterator[tuple[int, int]]:
    """A backend: every capitalised word, and one that overlaps."""
    position = 0
    for word in text.split(" "):
        if word[:1].isupper():
            yield position, position + len(word.rstrip("."))
        position += len(word) + 1
    yield 0, 5


def test_names_are_masked_and_come_back() -> None:
    rules = MaskingRules(detect=frozenset({"phone"}), names=f"{__name__}:by_capitals")
    mask = Masker(rules, b"k" * 32, "team/a").for_row({})
    masked = mask.mask(TEXT + " Call 13812345678Eve")
    assert not any(part in masked for part in ("Ada", "Lovelace", "Bo", "Call"))
    assert mask.restore(masked) == TEXT + " Call 13812345678Eve"


def test_a_number_that_touched_a_name_is_found_once_the_name_is_gone() -> None:
    rules = MaskingRules(detect=frozenset({"phone"}), names=f"{__name__}:first_three")
    masked = Masker(rules, b"k" * 32, "team/a").for_row({}).mask("Ann13812345678")
    assert "[PERSON_" in masked
    assert "[PHONE_" in masked


def first_three(text: str) -> list[tuple[int, int]]:
    return [(0, 3)]


@pytest.mark.parametrize(
    "returned",
    [[(0, 99)], [(-1, 2)], [(3, 3)], [(4, 2)], [(0,)], [("0", 3)], [(0, 3, "PERSON")], [None], None, 7, [(0.0, 3.0)]],
)
def test_a_span_that_is_none_is_refused(returned: Any) -> None:
    with pytest.raises(PrivacyError, match="masking: names: the backend") as caught:
        NameFinder(lambda _: returned).find(TEXT)
    assert "Ada" not in str(caught.value)


def test_overlapping_spans_are_no_fault() -> None:
    spans = NameFinder(lambda _: [(0, 5), (4, 12), [0, 12]]).find(TEXT)  # type: ignore[list-item]
    assert spans == [(0, 5, "PERSON"), (4, 12, "PERSON"), (0, 12, "PERSON")]


@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemExit, KeyboardInterrupt])
def test_an_error_stops_the_call_and_its_message_is_not_passed_on(error: type[BaseException]) -> None:
    def failing(text: str) -> list[tuple[int, int]]:
        raise error(text)

    finder = NameFinder(failing)
    for _ in range(3):
        with pytest.raises(PrivacyError, match=rf"the backend failed \({error.__name__}\)") as caught:
            finder.find(TEXT)
        assert "Ada" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_backend_that_hangs_is_left_behind_and_after_three_times_not_asked() -> None:
    release, asked = threading.Event(), []

    def hanging(text: str) -> list[tuple[int, int]]:
        asked.append(text)
        release.wait(30)
        return [(0, 3)]

    finder = NameFinder(hanging, seconds=0.02)
    for _ in range(3):
        with pytest.raises(PrivacyError, match=r"no answer within 0\.02 s"):
            finder.find(TEXT)
    with pytest.raises(PrivacyError, match="hung too often"):
        finder.find(TEXT)
    assert len(asked) == 3
    release.set()


def test_a_late_answer_is_never_taken_for_another_texts() -> None:
    gate = threading.Event()

    def slow_once(text: str) -> list[tuple[int, int]]:
        if text == "first":
            gate.wait(30)
            return [(0, 1)]
        return [(2, 4)]

    finder = NameFinder(slow_once, seconds=0.02)
    with pytest.raises(PrivacyError):
        finder.find("first")
    gate.set()
    patient = NameFinder(slow_once, seconds=30)
    patient._worker, finder._seconds = finder._worker, 30
    assert [(span.start, span.end) for span in finder.find("other")] == [(2, 4)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spacy", "expected presidio, or module:function"),
        ("no_such_module:f", "cannot be imported"),
        ("json:no_such_function", "cannot be imported"),
        ("json:decoder", "is not callable"),
    ],
)
def test_a_backend_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        load_backend(name)


def test_without_presidio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(PrivacyError, match=r"pip install 'airflow-ai-provider\[presidio\]'"):
        load_backend("presidio")


def test_presidio_is_asked_for_persons_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with Presidio's interface: its models are not part of a test run."""
    asked: list[dict[str, Any]] = []

    class Found:
        start, end = 0, 12

    class AnalyzerEngine:
        def analyze(self, text: str, **options: Any) -> list[Found]:
            asked.append(options)
            return [Found()]

    module = ModuleType("presidio_analyzer")
    module.AnalyzerEngine = AnalyzerEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", module)
    spans = NameFinder(load_backend("presidio")).find(TEXT)
    assert [(span.start, span.end) for span in spans] == [(0, 12)]
    assert asked == [{"language": "en", "entities": ["PERSON"]}]
    module.AnalyzerEngine = lambda: sys.exit(1)  # type: ignore[attr-defined]
    with pytest.raises(PrivacyError, match=r"presidio cannot start \(SystemExit\).*spacy download"):
        load_backend("presidio")
