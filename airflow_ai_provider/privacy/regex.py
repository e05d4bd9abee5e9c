"""RE2 patterns over the bytes of a view: linear time whatever the text, at most 8 MiB of memory each."""

from __future__ import annotations

import re2

_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False


def compile_bytes(pattern: bytes) -> re2._Regexp:
    """Compile a pattern in which one byte is one character."""
    return re2.compile(pattern, options=_OPTIONS)
