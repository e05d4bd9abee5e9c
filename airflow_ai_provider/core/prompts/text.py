"""Estimates of a text: its tokens and its languages.

Tokens of a text before anybody has counted them.

Which languages a text is written in, as far as its letters tell. Constant time: long texts are sampled evenly.

Scripts, not languages: Han, kana, Hangul, Thai, Greek and Hebrew letters stand for the one language that mostly uses
them. English and German cannot be told apart here, nor Russian and Bulgarian. Ranges are those of Unicode's Blocks.txt.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np

from airflow_ai_provider.core.policy import Language

ASCII_BYTES_PER_TOKEN = 4
"""OpenAI's rule of thumb for English, "What are tokens and how to count them?"; DeepSeek's documentation says 3.3."""
OTHER_BYTES_PER_TOKEN = 3
"""One token per Han character. DeepSeek's documentation says 0.6 tokens; older vocabularies take one and more."""
MOST_BYTES_PER_TOKEN = 8
"""No tokenizer in use packs more text than this into a token on average: what is over it cannot fit a context."""


def tokens_of(text: str, size: int) -> int:
    """Input tokens of a text of ``size`` UTF-8 bytes, by the rule of thumb."""
    ascii_bytes = size if size == len(text) else len(text.encode("ascii", "ignore"))
    return -(-ascii_bytes // ASCII_BYTES_PER_TOKEN) + -(-(size - ascii_bytes) // OTHER_BYTES_PER_TOKEN)


def more_tokens_than(limit: int, text: str, size: int) -> bool:
    """Whether the rule of thumb gives a text more than ``limit`` tokens. A look at the text is seldom needed."""
    if size <= (limit - 1) * OTHER_BYTES_PER_TOKEN:
        return False
    return size > limit * ASCII_BYTES_PER_TOKEN or tokens_of(text, size) > limit


_SAMPLE = 1024
"""Characters looked at; a share of a fifth is then off by at most 2.5 points in 19 of 20 texts."""
_SHARE = 0.2
"""Of the letters: a language with fewer is not one of the text's. A quoted name does not make a text Chinese."""
_KANA_SHARE = 0.1
"""Of Han and kana together; Japanese has about half, and a Chinese text that names a product has a few."""
_OTHER, _HAN, _KANA = 1, 2, 3
_SCRIPTS: dict[int, Language] = {
    4: "ko",
    5: "latin",
    6: "cyrillic",
    7: "arabic",
    8: "devanagari",
    9: "el",
    10: "he",
    11: "th",
}
_NO_LETTERS = (
    (0x2000, 0x2BFF),
    (0x2E00, 0x2E7F),
    (0x2FF0, 0x303F),
    (0xD800, 0xF8FF),
    (0xFE00, 0xFE6F),
    (0xFF00, 0xFF20),
)
_RANGES = {
    _HAN: ((0x2E80, 0x2FDF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xD840, 0xD8BF), (0xF900, 0xFAFF)),
    _KANA: ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    4: ((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    5: ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    6: ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    7: ((0x620, 0x65F), (0x66E, 0x6D3), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)),
    8: ((0x900, 0x963), (0x970, 0x97F), (0xA8E0, 0xA8FF)),
    9: ((0x370, 0x37D), (0x37F, 0x3FF), (0x1F00, 0x1FFF)),
    10: ((0x591, 0x5F4), (0xFB1D, 0xFB4F)),
    11: ((0xE01, 0xE4E),),
}
"""UTF-16 units; Han beyond the first plane by its high surrogate."""


def languages(text: str) -> frozenset[Language]:
    """Every language (or script) that a fifth of the letters and more are of."""
    sample = text[:: -(-len(text) // _SAMPLE)] if len(text) > _SAMPLE else text
    units = np.frombuffer(sample.encode("utf-16-le", "surrogatepass"), dtype="<u2")
    counts = np.bincount(_classes()[units], minlength=12).tolist()
    letters = sum(counts[1:])
    if not letters:
        return frozenset()
    found = {name for script, name in _SCRIPTS.items() if counts[script] >= _SHARE * letters}
    cjk = counts[_HAN] + counts[_KANA]
    if cjk >= _SHARE * letters:
        found.add("ja" if counts[_KANA] >= _KANA_SHARE * cjk else "zh")
    return frozenset(found)


@cache
def _classes() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The script of each UTF-16 unit; 0 is no letter. Below U+0370, letters are Latin or none."""
    classes = np.zeros(0x10000, dtype=np.uint8)
    classes[0x370:] = _OTHER
    _fill(classes, 0, _NO_LETTERS)
    for script, ranges in _RANGES.items():
        _fill(classes, script, ranges)
    return classes


def _fill(classes: np.ndarray[tuple[int], np.dtype[np.uint8]], script: int, ranges: Iterable[tuple[int, int]]) -> None:
    for first, last in ranges:
        classes[first : last + 1] = script
