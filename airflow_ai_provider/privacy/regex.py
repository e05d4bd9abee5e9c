"""RE2 patterns over the bytes of a view: linear time whatever the text, at most 8 MiB of memory each."""

from __future__ import annotations

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
