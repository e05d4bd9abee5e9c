"""RE2: linear time whatever the text, at most 8 MiB of memory for each pattern."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import re2


def bytes_options() -> re2.Options:
    """Options under which one byte is one character."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return options


_OPTIONS = bytes_options()


def compile_bytes(pattern: bytes) -> re2._Regexp:
    """Compile a pattern in which one byte is one character."""
    return re2.compile(pattern, options=_OPTIONS)


class Gate:
    """Tells in one pass which of several patterns are in a text. Safe to share between threads.

    The time of that pass depends on how many states the patterns have together: keep them short.
    """

    def __init__(self, signs: Sequence[bytes | str], options: re2.Options) -> None:
        self._everything = range(len(signs))
        self._set = re2.Set.SearchSet(options)
        for sign in signs:
            self._set.Add(sign)
        # RE2 reports a search for which it had too little memory as one without a match. This one always matches.
        self._always = self._set.Add("")
        self._set.Compile()
        self._last: tuple[bytes | str, Sequence[int]] = (b"", self._searched(b""))

    def open_for(self, data: bytes | str) -> Sequence[int]:
        """Indexes of the patterns that are there; all of them where the search gave up.

        What is masked and what guards it look at most texts one right after the other, and unchanged.
        """
        last, found = self._last
        if last != data:
            found = self._searched(data)
            self._last = data, found
        return found

    def _searched(self, data: bytes | str) -> Sequence[int]:
        found: list[int] | None = self._set.Match(data)
        if found is None or self._always not in found:
            return self._everything
        found.remove(self._always)
        found.sort()
        return found


@lru_cache(maxsize=64)
def shared_gate(signs: tuple[bytes, ...]) -> Gate:
    """The gate of some patterns on bytes, one for all who have the same."""
    return Gate(signs, bytes_options())
