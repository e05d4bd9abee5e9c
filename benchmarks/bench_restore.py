"""The way back: 10,000 rows with 1 to 8 values each, through 17 kinds of mangling.

Prints, for tokens as they were sent and for each kind of mangling: values that came back, values that came back wrong
(none may) or in another row (none may), and rows/s of one core. Beside them stands what placeholders ``<T_1>`` and
``str.replace`` give, which is what a hand-rolled script does. ``ROWS`` sets the number of rows.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable

from airflow_ai_provider.core.privacy.detectors.detector import KINDS
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules, RowMask
from airflow_ai_provider.testing.mangling import MANGLINGS

ROWS = int(os.environ.get("ROWS", "10000"))
_RULES = MaskingRules(frozenset(KINDS), {"name": "PERSON", "alias": "PERSON", "account": "ACCOUNT"})
_MARKS = re.compile(r"«(\d+):(.*?)»", re.DOTALL)


def main() -> None:
    rows = [_values(random.Random(number), number) for number in range(ROWS)]
    owner = {value: number for number, row in enumerate(rows) for value in row.values()}
    masker = Masker(_RULES, b"k" * 32, "team/bench")
    masks, started = [], time.process_time()
    for row in rows:
        mask = masker.for_row(row)
        mask.mask(_prompt(row))
        masks.append(mask)
    spent = time.process_time() - started
    values = sum(map(len, rows))
    print(f"{ROWS:,} rows, {values:,} values; masked at {ROWS / spent:,.0f} rows/s")
    print(f"{'mangling':<24}{'restored':>10}{'wrong':>7}{'other row':>11}{'rows/s':>9}{'<T_1>, replace':>16}")
    mangled = 0.0
    for name, mangle in {"none": str, **MANGLINGS}.items():
        share, wrong, foreign, speed = _round_trip(rows, masks, owner, mangle)
        mangled += share if name != "none" else 0
        plain = _replaced(rows, mangle)
        print(f"{name:<24}{share:>10.2%}{wrong:>7}{foreign:>11}{speed:>9,.0f}{plain:>16.2%}")
        assert wrong == foreign == 0, "a value came back where it does not belong"
        assert name != "none" or share == 1
    print(f"{'all 17 kinds':<24}{mangled / len(MANGLINGS):>10.2%}")
    assert mangled / len(MANGLINGS) >= 0.94


def _round_trip(
    rows: list[dict[str, str]], masks: list[RowMask], owner: dict[str, int], mangle: Callable[[str], str]
) -> tuple[float, int, int, float]:
    """(share restored, wrong values, other rows' values, rows/s). Each token stands between marks with its number."""
    answers = []
    for row, mask in zip(rows, masks, strict=True):
        tokens = {value: token for token, value in mask.tokens.items()}
        pieces = (f"«{place}:{mangle(tokens[value])}»" for place, value in enumerate(row.values()))
        answers.append(f"Dear customer, {', '.join(pieces)}. Best regards.")
    started = time.process_time()
    restored = [mask.restore_value(answer) for mask, answer in zip(masks, answers, strict=True)]
    spent = time.process_time() - started
    back = wrong = foreign = 0
    for number, (row, text) in enumerate(zip(rows, restored, strict=True)):
        wanted = list(row.values())
        for place, found in _MARKS.findall(text):
            right = wanted[int(place)] in found
            back += right
            others = [value for value in wanted if value != wanted[int(place)] and value in found]
            wrong += bool(others)
            foreign += any(owner.get(word, number) != number for word in re.split(r"[\s,;*`()\[\]【】]+", found))
    return back / sum(map(len, rows)), wrong, foreign, len(rows) / spent


def _replaced(rows: list[dict[str, str]], mangle: Callable[[str], str]) -> float:
    """What comes back of ``<T_1>``, ``<T_2>`` and ``str.replace``; the angle brackets are part of the placeholder."""
    back = 0
    for row in rows[:1000]:
        placeholders = {f"<T_{place}>": value for place, value in enumerate(row.values(), 1)}
        for placeholder, value in placeholders.items():
            text = mangle(placeholder)
            for other, original in placeholders.items():
                text = text.replace(other, original)
            back += value in text
    return back / sum(map(len, rows[:1000]))


def _prompt(row: dict[str, str]) -> str:
    return "Question of a customer: " + "; ".join(row.values()) + ". What can be done?"


def _values(rng: random.Random, number: int) -> dict[str, str]:
    """1 to 8 values, which no other row has."""
    everything = {
        "name": f"Ann Nowak{number}x",
        "email": f"ann.{number}@example.com",
        "mobile": f"138{number % 10**5:05d}{rng.randrange(1000):03d}",
        "ip": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        "second": f"office{number}@example.org",
        "account": f"HP-{number:06d}-{rng.choice('ABCDE')}",
        "phone": f"+44 7{number % 10**5:05d} {rng.randrange(10**4):04d}",
        "alias": f"李{chr(0x4E00 + number % 20_000)}{chr(0x4E00 + number * 7 % 20_000)}",
    }
    chosen = rng.sample(sorted(everything), rng.randint(1, 8))
    return {name: everything[name] for name in chosen}


if __name__ == "__main__":
    main()
