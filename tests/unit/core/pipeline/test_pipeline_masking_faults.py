"""Fault injection: whatever goes wrong in masking, the vendor gets no unmasked text, and other rows are answered.

The vendor is a real server; what it received decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, policy

from airflow_ai_provider.core.privacy.detectors.detector import Detector
from airflow_ai_provider.core.privacy.detectors.names_and_addresses import NameFinder
from airflow_ai_provider.core.privacy.detectors.text_view import Span, View
from airflow_ai_provider.core.privacy.masking import masker
from airflow_ai_provider.core.privacy.masking.masker import RowMask
from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.testing.vendor import VendorDouble

SECRET = "ann@example.com"
ROWS = [f"write to {SECRET} about it", "nothing personal here", f"Poison {SECRET}"]
_release = threading.Event()


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> Iterator[House]:
    made = House(tmp_path, vendor)
    made.write(policy(masking="m", profiles={"m": {"detect": ["email"]}}))
    yield made
    _release.set()
    assert made.left_over() == (0, 0)
    assert vendor.find(SECRET) == []


def with_detector(
    monkeypatch: pytest.MonkeyPatch, candidates: Callable[[Callable[[View], list[Span]], View], list[Span]]
) -> None:
    """Replace what every detector does; the true one is passed as the first argument."""
    true = Detector.candidates
    monkeypatch.setattr(Detector, "candidates", lambda self, view: candidates(partial(true, self), view))


def test_without_a_fault_the_rows_are_answered_and_masked(house: House, vendor: VendorDouble) -> None:
    outcome = house.run(ROWS)
    assert outcome.column("status") == ["ok"] * 3
    assert vendor.stats().requests == 3
    assert vendor.find("[EMAIL_")


def test_a_detector_that_raises_costs_its_rows_only(
    house: House, vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(true: Callable[[View], list[Span]], view: View) -> list[Span]:
        if "Poison" in view.text:
            raise RuntimeError(f"cannot deal with {view.text}")
        return true(view)

    with_detector(monkeypatch, raising)
    outcome = house.run(ROWS)
    assert outcome.column("status") == ["ok", "ok", "error"]
    assert outcome.rows[2]["error"] == "privacy: could not mask a text (RuntimeError); nothing was sent"
    assert outcome.rows[2]["answer"] is None
    assert vendor.stats().requests == 2


@pytest.mark.parametrize(
    "span", [Span(0, 10_000, "email"), Span(-3, 4, "email"), Span(5, 5, "email"), Span(9, 2, "email")], ids=repr
)
def test_a_span_outside_the_text_stops_the_row(
    house: House, vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch, span: Span
) -> None:
    with_detector(monkeypatch, lambda true, view: [*true(view), span])
    outcome = house.run(ROWS)
    assert outcome.column("status") == ["error"] * 3
    assert "not within the text" in outcome.rows[0]["error"]
    assert vendor.requests() == []


def test_overlapping_spans_hide_all_that_they_cover(
    house: House, vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overlapping(true: Callable[[View], list[Span]], view: View) -> list[Span]:
        found = true(view)
        return [
            *found,
            *(Span(s.start + 2, s.end, s.entity) for s in found),
            *(Span(s.start, s.end - 1, "phone") for s in found),
        ]

    with_detector(monkeypatch, overlapping)
    assert house.run(ROWS).column("status") == ["ok"] * 3
    assert vendor.stats().requests == 3
    assert vendor.find("example") == []


def test_masking_that_silently_does_nothing_is_stopped_by_the_guard(
    house: House, vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowMask, "mask", lambda self, text: text)
    outcome = house.run(ROWS)
    assert outcome.column("status") == ["error", "ok", "error"]
    assert outcome.rows[0]["error"] == ("privacy: a masked text still holds a value of kind email; nothing was sent")
    assert vendor.stats().requests == 1


def test_a_guard_that_fails_stops_the_row(house: House, vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(masker.Masker, "_check", broken)
    assert house.run(ROWS).column("status") == ["error"] * 3
    assert vendor.requests() == []


# A backend for names is foreign code.


def raises(text: str) -> list[tuple[int, int]]:
    raise ValueError(text)


def hangs(text: str) -> list[tuple[int, int]]:
    _release.wait(60)
    return []


def lies(text: str) -> list[tuple[int, int]]:
    return [(0, len(text) + 1)]


def overlaps(text: str) -> list[tuple[int, int]]:
    return [(0, 5), (3, 8), (0, 8)]


@pytest.mark.parametrize(
    ("backend", "error"),
    [(raises, "failed (ValueError)"), (hangs, "no answer within 0.05 s"), (lies, "not within the text")],
)
def test_a_backend_for_names_that_fails_stops_every_row(
    house: House, vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch, backend: Callable[[str], Any], error: str
) -> None:
    _release.clear()
    monkeypatch.setattr(masker, "NameFinder", partial(NameFinder, seconds=0.05))
    house.write(policy(masking="m", profiles={"m": {"names": f"{__name__}:{backend.__name__}"}}))
    outcome = house.run(ROWS)
    assert outcome.column("status") == ["error"] * 3
    assert error in outcome.rows[0]["error"]
    assert SECRET not in str(outcome.column("error"))
    assert vendor.requests() == []


def test_overlapping_names_are_masked_as_one(house: House, vendor: VendorDouble) -> None:
    profile = {"names": f"{__name__}:overlaps", "detect": ["email"]}
    house.write(policy(masking="m", profiles={"m": profile}))
    (row,) = house.run(["Ada Lovelace asks"]).rows
    assert row["status"] == "ok"
    assert vendor.find("Ada") == []
    assert vendor.find("[PERSON_")


def test_a_backend_that_is_not_installed_fails_the_task_before_any_call(house: House, vendor: VendorDouble) -> None:
    house.write(policy(masking="m", profiles={"m": {"names": "no_such_module:find"}}))
    with pytest.raises(PrivacyError, match="'no_such_module:find' cannot be imported"):
        house.run(ROWS)
    assert vendor.requests() == []
