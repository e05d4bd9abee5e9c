"""What models do to placeholders: the forms in which a token such as ``[EMAIL_7K2QM]`` may come back.

For tests of whatever has to find tokens again. Each function gets one token and gives it back as a model might write
it; the last kind keeps nothing to find it by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def _inside(token: str) -> str:
    return token[1:-1]


MANGLINGS: Mapping[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "title case": str.title,
    "bold": lambda token: f"**{token}**",
    "code": lambda token: f"`{token}`",
    "markdown escapes": lambda token: "\\[" + _inside(token).replace("_", "\\_") + "\\]",
    "markdown link": lambda token: f"{token}(mailto:support@example.org)",
    "HTML entities": lambda token: f"&#91;{_inside(token).replace('_', '&#95;')}&#93;",
    "HTML tag": lambda token: f"<b>{_inside(token)}</b>",
    "full width": lambda token: token.translate(_FULL_WIDTH),
    "CJK brackets": lambda token: f"【{_inside(token)}】",
    "brackets lost": _inside,
    "parentheses": lambda token: f"({_inside(token)})",
    "hyphens": lambda token: token.replace("_", "-"),
    "blanks for underscores": lambda token: token.replace("_", " "),
    "blanks in brackets": lambda token: f"[ {_inside(token)} ]",
    "URL encoded": lambda token: f"%5B{_inside(token)}%5D",
    "type lost": lambda token: f"[{token[token.rindex('_') + 1 :]}",
}
