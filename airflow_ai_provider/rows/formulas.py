"""Neutralise text that a spreadsheet would run as a formula when it opens a CSV file.

The rule follows OWASP's page on CSV injection: an apostrophe goes before a cell that begins with ``=``, ``+``, ``-``,
``@`` (also in their full-width and small forms), behind any white space, invisible characters and quotes, and before a
cell that begins with a tab or a line break. Plain numbers such as ``-12.5`` and ``+86 138 0013 8000`` are left alone:
a spreadsheet computes nothing from digits and separators.

The rule can be reversed: remove one apostrophe from a cell whose remainder is a formula by the same rule.
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

Formulas = Literal["neutralise", "keep"]

_BEFORE = (
    r"""[\s\pZ\p{Cc}\p{Cf}\x{34F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{2800}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}"""
    r""""'\p{Pi}\p{Pf}\x60\xB4\x{2BC}\x{201A}\x{201E}\x{2032}\x{2033}\x{FF02}\x{FF07}]*"""
)
"""White space, control and invisible characters, and quotes of all kinds."""
_SIGNS = r"[=+\-@\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}\x{FE66}\x{FE62}\x{FE63}\x{FE6B}\x{2212}]"
_FORMULA = rf"""\A(?:['"]*[\t\r\n]|{_BEFORE}{_SIGNS})"""
_NUMBER = r"\A[+-]?\d+(?:[ .,\x{A0}\x{202F}]\d+)*(?:[eE][+-]?\d+)?[ \x{A0}]?%?\z"


def is_text(kind: pa.DataType) -> bool:
    """Whether cells of this type can hold a formula."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def neutralised(column: Any) -> Any:
    """A text column with an apostrophe before each formula; the column itself where it holds none."""
    text: Any = column.cast(pa.large_string())
    formula = pc.and_not(pc.match_substring_regex(text, _FORMULA), pc.match_substring_regex(text, _NUMBER))
    if not pc.any(formula).as_py():
        return column
    quoted = pc.replace_substring_regex(text, r"\A", "'", max_replacements=1)
    return pc.if_else(formula, quoted, text).cast(column.type)


def neutralised_name(name: str) -> str:
    """The same for the name of a column, which is a cell of the header."""
    return str(neutralised(pa.array([name]))[0].as_py())
