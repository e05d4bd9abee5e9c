"""Detection of personal data: recall, precision and speed, beside Presidio's pattern recognisers in the same run.

    python benchmarks/bench_masking.py [FOLDER]

FOLDER (or ``PII_DATA``, default ``../shared/data/pii``) holds ``synth_dataset_v2.json`` of microsoft/presidio-research
and ``zh_matrix.json``, Chinese texts in the same form: ``full_text`` and ``spans`` with ``entity_type``,
``start_position`` and ``end_position``. Without it, or without Presidio (``make bench`` installs it), nothing is
measured.

A value counts as found if a finding of its kind touches it, as whole if the findings cover it; a finding is right if
it touches a value of its kind. F2 weighs recall four times as much as precision. Times are CPU seconds of one core.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_ai_provider.core.privacy.detectors.detector import Detector
from airflow_ai_provider.core.privacy.detectors.text_view import Span

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "EMAIL_ADDRESS": (("email",), "EMAIL_ADDRESS"),
    "PHONE_NUMBER": (("phone",), "PHONE_NUMBER"),
    "CREDIT_CARD": (("card",), "CREDIT_CARD"),
    "IBAN_CODE": (("iban",), "IBAN_CODE"),
    "IP_ADDRESS": (("ip",), "IP_ADDRESS"),
    "US_SSN": (("ssn",), "US_SSN"),
    "DOMAIN_NAME": (("url",), "URL"),
    "DATE_TIME": (("date", "birth_date"), "DATE_TIME"),
    "US_DRIVER_LICENSE": (("driver_license",), "US_DRIVER_LICENSE"),
}
"""Label of the data set → our kinds, Presidio's entity."""
CHINESE = {
    "CN_PHONE": ("phone",),
    "CN_ID": ("cn_id",),
    "BANK": ("card", "bank_account"),
    "EMAIL_ADDRESS": ("email",),
    "IP_ADDRESS": ("ip",),
    "PASSPORT": ("passport",),
}
CRAFTED = ("12 ", "12-34-56 ", "1/1/90 ", "123-", "a@b.", "(1)", "::", "phone 1234567 ", "建国路1号", "a.com/", "sk-")
CRAFTED_BYTES = 20_000
_ROUNDS = 10
_TURN = 100
"""Texts of one turn, and how often ours takes them."""

Find = Callable[[str], Sequence[Span]]


@dataclass(frozen=True)
class Score:
    """Counts over all texts, for one kind."""

    values: int
    touched: int
    whole: int
    findings: int
    right: int

    @property
    def recall(self) -> float:
        return self.touched / self.values

    @property
    def precision(self) -> float:
        return self.right / self.findings if self.findings else 0.0

    @property
    def f2(self) -> float:
        weighed = 4 * self.precision + self.recall
        return 5 * self.precision * self.recall / weighed if weighed else 0.0


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PII_DATA", ROOT.parent / "shared/data/pii"))
    if not (folder / "synth_dataset_v2.json").is_file():
        print(f"skipped: no data in {folder}; name the folder as the argument or in PII_DATA")
        return
    presidio = _presidio()
    if presidio is None:
        print("skipped: presidio-analyzer is not installed; make bench installs it")
        return
    _english(json.loads((folder / "synth_dataset_v2.json").read_text(encoding="utf-8")), _ours(), presidio)
    if (folder / "zh_matrix.json").is_file():
        _chinese(json.loads((folder / "zh_matrix.json").read_text(encoding="utf-8")), _ours())
    _crafted()


def _ours() -> Find:
    return Detector(["all"]).find


def _presidio() -> Find | None:
    """All English recognisers that need no language model, as Presidio's own analyser calls them."""
    try:
        from presidio_analyzer import EntityRecognizer, RecognizerRegistry
    except ImportError:
        return None
    for name in ("presidio-analyzer", "tldextract"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"])
    recognisers = [one for one in registry.recognizers if "Spacy" not in one.name]

    def find(text: str) -> list[Span]:
        found = [item for one in recognisers for item in one.analyze(text, one.supported_entities, None) or []]
        return [Span(item.start, item.end, item.entity_type) for item in EntityRecognizer.remove_duplicates(found)]

    return find


def _english(samples: Sequence[Mapping[str, Any]], ours: Find, presidio: Find) -> None:
    texts = [sample["full_text"] for sample in samples]
    size = sum(len(text.encode()) for text in texts)
    mine, my_seconds, theirs, their_seconds = _side_by_side(ours, presidio, texts)
    print(f"{'':18}{'':>7}{'airflow_ai_provider':>34}{'Presidio patterns':>34}")
    head = f"{'recall':>8}{'whole':>8}{'precision':>11}{'F2':>7}"
    print(f"{'kind':18}{'values':>7}{head}{head}")
    for label, (my_kinds, their_kind) in KINDS.items():
        gold = [[_ends(span) for span in sample["spans"] if span["entity_type"] == label] for sample in samples]
        scores = (_score(gold, mine, my_kinds), _score(gold, theirs, [their_kind]))
        cells = "".join(f"{s.recall:>8.3f}{s.whole / s.values:>8.3f}{s.precision:>11.3f}{s.f2:>7.3f}" for s in scores)
        print(f"{my_kinds[0]:18}{scores[0].values:>7}{cells}")
    speeds = size / my_seconds / 1e6, size / their_seconds / 1e6
    print(f"{'MB/s per core':25}{speeds[0]:>34.2f}{speeds[1]:>34.3f}   ({speeds[0] / speeds[1]:.0f} times)")


def _chinese(samples: Sequence[Mapping[str, Any]], find: Find) -> None:
    values: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for sample in samples:
        found = find(sample["full_text"])
        for span in sample["spans"]:
            label, (start, end) = span["entity_type"], _ends(span)
            values[label] += 1
            whole[label] += any(k in CHINESE[label] and s <= start and end <= e for s, e, k in found)
    print(f"\n{'Chinese texts':18}{'values':>7}{'whole':>8}")
    for label in values:
        print(f"{label:18}{values[label]:>7}{whole[label] / values[label]:>8.3f}")
    print(f"{'all':18}{values.total():>7}{whole.total() / values.total():>8.3f}")


def _crafted() -> None:
    """The slowest of some texts made to be slow. Presidio takes tens of seconds for such, and is not asked."""
    find = _ours()
    worst = 0.0, ""
    for piece in CRAFTED:
        text = (piece * CRAFTED_BYTES)[: CRAFTED_BYTES if piece.isascii() else CRAFTED_BYTES // 3]
        worst = max(worst, (min(_timed(find, [text])[1] for _ in range(3)), piece))
    print(f"\nslowest crafted text of 20 KB: {worst[0]:.3f} s ({worst[1]!r} repeated)")


def _side_by_side(
    ours: Find, presidio: Find, texts: Sequence[str]
) -> tuple[list[Sequence[Span]], float, list[Sequence[Span]], float]:
    """What both find, and the CPU seconds each takes for all texts.

    They take turns, so that a busy machine slows both; ours runs several times in its turn, to last long enough to be
    measured. A first pass warms up.
    """
    for text in texts:
        ours(text)
    presidio(texts[0])
    mine: list[Sequence[Span]] = []
    theirs: list[Sequence[Span]] = []
    my_seconds = their_seconds = 0.0
    for start in range(0, len(texts), _TURN):
        turn = texts[start : start + _TURN]
        found, seconds = _timed(ours, list(turn) * _ROUNDS)
        mine += found[: len(turn)]
        my_seconds += seconds / _ROUNDS
        found, seconds = _timed(presidio, turn)
        theirs += found
        their_seconds += seconds
    return mine, my_seconds, theirs, their_seconds


def _timed(find: Find, texts: Sequence[str]) -> tuple[list[Sequence[Span]], float]:
    started = time.process_time()
    found = [find(text) for text in texts]
    return found, time.process_time() - started


def _ends(span: Mapping[str, Any]) -> tuple[int, int]:
    return span["start_position"], span["end_position"]


def _score(gold: Sequence[Sequence[tuple[int, int]]], found: Sequence[Sequence[Span]], kinds: Sequence[str]) -> Score:
    counts: Counter[str] = Counter()
    for values, findings in zip(gold, found, strict=True):
        spans = [(span.start, span.end) for span in findings if span.entity in kinds]
        counts["values"] += len(values)
        counts["findings"] += len(spans)
        counts["touched"] += sum(any(_touch(value, span) for span in spans) for value in values)
        counts["whole"] += sum(any(s <= start and end <= e for s, e in spans) for start, end in values)
        counts["right"] += sum(any(_touch(value, span) for value in values) for span in spans)
    return Score(counts["values"], counts["touched"], counts["whole"], counts["findings"], counts["right"])


def _touch(left: tuple[int, int], right: tuple[int, int]) -> bool:
    return left[0] < right[1] and right[0] < left[1]


if __name__ == "__main__":
    main()
