"""Where something personal stands in a text, and how overlapping findings become one.

Invariant: the union of the resolved spans is the union of the given ones. Nothing that any detector found is left
uncovered because another detector won.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """``text[start:end]`` is an ``entity``; offsets count code points of the text that was given."""

    start: int
    end: int
    entity: str


def resolve(spans: Iterable[Span], rank: Sequence[str]) -> list[Span]:
    """Return disjoint spans, in order, that cover exactly what ``spans`` cover.

    Overlapping spans become one. It takes the type of the longest of them; among equally long ones, the type
    that comes first in ``rank`` (types that are not in ``rank`` come before all).
    """
    ordered = sorted(spans)
    if len(ordered) < 2 or all(left.end <= right.start for left, right in pairwise(ordered)):
        return ordered
    groups: list[list[Span]] = []
    reach = -1
    for span in ordered:
        if span.start >= reach:
            groups.append([span])
        else:
            groups[-1].append(span)
        reach = max(reach, span.end)
    return [_merge(group, rank) for group in groups]


def _merge(group: Sequence[Span], rank: Sequence[str]) -> Span:
    if len(group) == 1:
        return group[0]

    def strength(span: Span) -> tuple[int, int]:
        position = rank.index(span.entity) if span.entity in rank else -1
        return span.end - span.start, -position

    winner = max(group, key=strength)
    return Span(group[0].start, max(span.end for span in group), winner.entity)
