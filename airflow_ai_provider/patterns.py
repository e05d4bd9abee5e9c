"""Patterns that users write: compiled by RE2, which takes linear time, and bounded in size and memory.

``policy.yaml`` is checked with this before anything runs, and the rooms that search with such patterns compile them
with it again.
"""

from __future__ import annotations

import re2

MAX_CHARACTERS = 500
MAX_PROGRAM = 4_000
"""RE2 instructions. In the worst case a search takes time proportional to their number times the text's length."""
MEMORY = 1 << 20
"""Bytes that RE2 may use for one pattern; a search that needs more goes on more slowly."""


def bounded_options() -> re2.Options:
    """Options for patterns of users: Unicode text, little memory."""
    options = re2.Options()
    options.max_mem = MEMORY
    options.log_errors = False
    return options


def compile_pattern(pattern: str) -> re2._Regexp:
    """Compile a user's pattern. Raises ``ValueError`` that says what is wrong with it, and does not quote it."""
    if not 1 <= len(pattern) <= MAX_CHARACTERS:
        raise ValueError(f"expected a pattern of 1 to {MAX_CHARACTERS} characters")
    try:
        compiled = re2.compile(pattern, options=bounded_options())
    except re2.error as error:
        raise ValueError(
            f"not a pattern of RE2: {_reason(error)} (RE2 has no lookaround and no backreferences)"
        ) from None
    if compiled.programsize > MAX_PROGRAM:
        raise ValueError(f"the pattern is too large ({compiled.programsize} of {MAX_PROGRAM} steps): repeat less")
    if compiled.search("") is not None:
        raise ValueError("the pattern matches the empty text")
    return compiled


def _reason(error: Exception) -> str:
    """RE2's reason without the part of the pattern that it quotes."""
    raw = error.args[0] if error.args else ""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    return text.partition(":")[0] or "it does not compile"
