"""The search terms of a text: what a chunk is indexed by, and what a query asks for.

We cut the words ourselves instead of leaving it to the server's analyzer, because no analyzer that both Milvus Lite
and a Milvus server have can read Chinese: ``standard`` takes a run of Han characters for one word, and ``jieba`` is a
separate package that Milvus Lite does not bring. The server still computes BM25; it only finds words that need no
more cutting.

* Text is brought to one form: NFKC (full-width letters and digits), lower case, accents of Latin letters dropped.
* Han, kana and hangul runs become overlapping pairs of characters, the method of Lucene's ``CJKBigramFilter``.
* A pair is written in ASCII (``zh9000z6b3e``), so that every analyzer leaves it whole.
* English stop words are dropped, and plurals are reduced by the S-stemmer of Harman (1991, "How effective is
  suffixing?"). ``-ing``, ``-ed`` and ``-e`` of longer words are dropped too.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

TERMS_VERSION = 1
"""Part of a document's fingerprint: raise it when the same text would give other terms."""

_CJK = (
    "\u3005\u3007"  # iteration mark, zero
    "\u3040-\u30ff"  # hiragana, katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # Han
    "\uac00-\ud7a3"  # hangul
)
_RUN = re.compile(rf"([{_CJK}]+)|([^\W_{_CJK}]+)")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about an and any are as at be been but by can could did do does for from had has have how i if in into is
        it its me my no not of on or our so some such than that the their them then there these they this to us was
        we were what when where which who why will with would you your please hi hello dear thank thanks im ive id
        cant dont didnt doesnt isnt wont whats
        """,
    )
)


def terms(text: str) -> list[str]:
    """The terms of ``text`` in order, repeats included."""
    found: list[str] = []
    for match in _RUN.finditer(_APOSTROPHE.sub("", _normal(text))):
        if match[1]:
            found.extend(_pairs(match[1]))
        elif match[2] not in _STOP_WORDS:
            found.append(_stem(match[2]))
    return found


def _normal(text: str) -> str:
    lowered = unicodedata.normalize("NFKC", text).lower()
    if lowered.isascii():
        return lowered
    return unicodedata.normalize("NFC", "".join(_without_accents(lowered)))


def _without_accents(text: str) -> list[str]:
    return [_base(char) if "À" <= char <= "ỿ" else char for char in text]


def _base(char: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", char) if not unicodedata.combining(c))


def _pairs(run: str) -> list[str]:
    if len(run) == 1:
        return [f"zh{ord(run):x}"]
    return [f"zh{ord(a):x}z{ord(b):x}" for a, b in pairwise(run)]


def _stem(word: str) -> str:
    if len(word) < 4 or not (word.isascii() and word.isalpha()):
        return word
    return _verb_stem(_singular(word))


def _singular(word: str) -> str:
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def _verb_stem(word: str) -> str:
    """``cancel``, ``cancelling``, ``cancelled`` → ``cancel``; ``charge``, ``charged``, ``charging`` → ``charg``."""
    for suffix in ("ing", "ed", "e"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            word = word.removesuffix(suffix)
            break
    doubled = len(word) > 4 and word[-1] == word[-2] and word[-1] not in "aeiou"
    return word[:-1] if doubled else word
