"""What the sections of a policy are made of: durations, amounts, words, parameters, and how each is read."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from airflow_ai_provider.policy.params import remedies, reserved

Tier = Literal["simple", "medium", "complex"]
TIERS: tuple[Tier, ...] = ("simple", "medium", "complex")
Language = Literal["zh", "ja", "ko", "el", "he", "th", "latin", "cyrillic", "arabic", "devanagari"]
"""What a text's letters tell: a language where it alone uses its script, else the script."""
_SHARED_SCRIPTS = {
    "latin": "en de fr es it pt nl pl cs sk hu ro sv da no fi tr vi id ms tl sw",
    "cyrillic": "ru uk be bg sr mk kk mn",
    "arabic": "ar fa ur ps",
    "devanagari": "hi mr ne",
}
_SCRIPT_OF = {code: script for script, codes in _SHARED_SCRIPTS.items() for code in codes.split()}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """Turn ``90``, ``"90s"``, ``"15m"``, ``"1h"`` or ``"7d"`` into seconds."""
    if isinstance(value, str) and value[-1:] in _UNITS and value[:-1].isdigit():
        return int(value[:-1]) * _UNITS[value[-1]]
    return value


def _decimal(value: Any) -> Any:
    """A YAML float is read by its shortest text, so that 0.1 means one tenth."""
    return Decimal(repr(value)) if isinstance(value, float) else value


def listed(value: Any) -> Any:
    """One name may stand without the brackets of a list."""
    return (value,) if isinstance(value, str) else value


def _no_reserved_params(params: dict[str, Any]) -> dict[str, Any]:
    if bad := reserved(params):
        raise ValueError(
            f"{', '.join(bad)} cannot be set here: the gateway sets it, or it would cost unforeseen ({remedies(bad)})"
        )
    return params


def as_word(value: Any) -> str:
    """A value of a row or of the policy as it is compared: as text, in lower case, without blanks around it."""
    return str(value).strip().lower()


def as_words(value: Any) -> Any:
    """Plain values as words; one needs no list."""
    values = value if isinstance(value, list | tuple) else [value]
    if any(one is None or isinstance(one, list | dict) for one in values):
        raise ValueError("expected a value, or a list of values")
    return tuple(map(as_word, values))


def tellable(language: Any) -> Any:
    if script := _SCRIPT_OF.get(language) if isinstance(language, str) else None:
        raise ValueError(f"letters do not tell {language!r} from other languages of its script; write {script}")
    return language


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(as_words), Field(min_length=1)]
Params = Annotated[dict[str, Any], AfterValidator(_no_reserved_params)]
Duration = Annotated[int, BeforeValidator(_seconds), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=3600)]
Usd = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, max_digits=19, decimal_places=9)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
