"""Recall and precision over made values: what the figures in docs/privacy.md rest on, in forms of our own making."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from support.personal_data import Made, cards, chinese, phones

from airflow_ai_provider.core.privacy.detectors.detector import Detector

DETECTOR = Detector(["all"])
ROUNDS = 40


def missed(make: Callable[[random.Random], Iterator[Made]], seed: int) -> tuple[Counter[str], int]:
    """Forms that were not found whole, under the right kind, with how often; and the number of values."""
    rng = random.Random(seed)
    lost: Counter[str] = Counter()
    values = 0
    for _ in range(ROUNDS):
        for made in make(rng):
            values += 1
            spans = DETECTOR.find(made.text)
            kinds = {"card", "bank_account"} if made.kind == "bank_account" else {made.kind}
            if not any(s.entity in kinds and s.start <= made.start and made.end <= s.end for s in spans):
                lost[f"{made.kind}/{made.form}"] += 1
    return lost, values


@pytest.mark.parametrize(
    ("make", "least"), [(phones, 0.97), (cards, 0.995), (chinese, 0.99)], ids=["phones", "cards", "Chinese"]
)
def test_most_values_are_found_whole_in_whatever_form(
    make: Callable[[random.Random], Iterator[Made]], least: float
) -> None:
    lost, values = missed(make, seed=11)
    assert values >= 1000
    assert 1 - lost.total() / values >= least, lost.most_common(10)


def test_ordinary_figures_are_left() -> None:
    """Order numbers, amounts, sizes, versions and times are not taken for phones, cards or identity numbers."""
    rng = random.Random(5)
    makers: list[Callable[[], str]] = [
        lambda: f"order {rng.randint(2015, 2026)}-{rng.randint(0, 999999):06} was shipped",
        lambda: f"{rng.randint(1, 999):,}.{rng.randint(0, 99):02} USD and {rng.randint(10, 99)} 000 000 EUR",
        lambda: f"version {rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 20)} of {rng.randint(2000, 2026)}",
        lambda: f"from {rng.randint(2000, 2012)}-{rng.randint(2013, 2026)}, {rng.randint(100, 999)} pieces",
        lambda: f"at {rng.randint(0, 23):02}:{rng.randint(0, 59):02}:07 on 2024-0{rng.randint(1, 9)}-11",
        lambda: f"{rng.randint(100, 999)} {rng.randint(1000, 9999)} Oak Street, Suite {rng.randint(1, 99)}",
        lambda: f"sku A{rng.randint(10**9, 10**10 - 1)}, {rng.random():.12f}, {rng.randint(0, 2**64):x}z",
        lambda: f"共{rng.randint(1, 99)}件，单价{rng.randint(1, 9999)}元，第{rng.randint(1, 300)}页",
    ]
    found = [
        (span.entity, text[span.start : span.end])
        for _ in range(200)
        for text in [make() for make in makers]
        for span in DETECTOR.find(text)
        if span.entity in ("phone", "card", "cn_id", "ssn", "bank_account")
    ]
    assert len(found) <= 200 * len(makers) * 0.01, found[:10]
