"""Guesses, from the numbers in event ids, what was done to a chain that is broken. Only a help for the reader: the
chain is the proof, and whoever changes a file can change the numbers too."""

from __future__ import annotations

from collections.abc import Sequence


def likely_attack(writer: str, expected: int, claimed: Sequence[str]) -> str:
    """``claimed`` are the event ids from the first bad line on, ``""`` where unreadable; ``expected`` is its number."""
    if not claimed:
        return "truncated"
    numbers = [_number(writer, each) for each in claimed]
    first = numbers[0]
    if first is None:
        return "edited or damaged" if claimed[0] == "" else "inserted from elsewhere"
    known = [number for number in numbers if number is not None]
    if first < expected or len(set(known)) < len(known):
        return "inserted or duplicated"
    if first == expected:
        return "edited"
    return "reordered" if expected in known else "deleted"


def _number(writer: str, claimed: str) -> int | None:
    prefix, _, digits = claimed.rpartition("-")
    return int(digits) if prefix == writer and digits.isascii() and digits.isdigit() and len(digits) < 20 else None
