"""Tokens of a text before anybody has counted them."""

from __future__ import annotations

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
