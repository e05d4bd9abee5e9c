"""RE2: linear time whatever the text, at most 8 MiB of memory for each pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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

    def open_for(self, data: bytes | str) -> Iterable[int]:
        """Indexes of the patterns that are there; all of them where the search gave up."""
        found: list[int] | None = self._set.Match(data)
        if found is None or self._always not in found:
            return self._everything
        found.remove(self._always)
        return sorted(found)
