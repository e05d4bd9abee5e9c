"""The steps of ``protection.run_rows``: mask and restore texts, encrypt and decrypt columns, move them to a new key.

A masked table carries the way back with it: the row's map of tokens, encrypted and bound to the row, in the column
``tokens_sealed``. It opens with the key that it names, so tokens outlive any rotation. Nothing here knows Airflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import orjson
import pyarrow as pa

from airflow_ai_provider.core.errors import PolicyError, PrivacyError, SourceError
from airflow_ai_provider.core.jobs.column_functions import Row, kind_of, treatment, type_of
from airflow_ai_provider.core.jobs.transform import ERROR, STATUS, Act, StepPlan, Treated
from airflow_ai_provider.core.privacy.crypto.fields import Fields
from airflow_ai_provider.core.privacy.masking.masker import Masker, RowMask
from airflow_ai_provider.core.privacy.masking.nested_values import RawJson, restore_value
from airflow_ai_provider.core.privacy.masking.tokens import Restorer, TokenReport

SEALED = "tokens_sealed"
REPORT = ("tokens_missing", "tokens_unknown", "tokens_repeated")
_APART = frozenset({SEALED, STATUS, ERROR, *REPORT})

Scope = Literal["row", "run", "team"]


class MaskStep:
    """Tokens in place of personal values; masked columns become text."""

    action = "rows.masked"
    opens = None

    def __init__(
        self,
        masker: Masker,
        named: Mapping[str, str],
        *,
        fields: Fields,
        columns: Sequence[str] | None,
        profile: str,
        scope: Scope,
        reversible: bool,
        version: Any,
    ) -> None:
        """``named`` are the profile's columns and their types; ``columns`` those to look for values in."""
        self._masker = masker
        self._named_by_profile = named
        self._fields = fields
        self._wanted = columns
        self._by_row = scope == "row"
        self._reversible = reversible
        self._version = version
        self.noted = {"profile": profile}
        self._named: dict[str, str] = {}
        self._searched: list[str] = []

    def prepare(self, schema: pa.Schema, key: str) -> StepPlan:
        self._named = {name: kind for name, kind in self._named_by_profile.items() if name in schema.names}
        if key in self._named:
            raise PolicyError(f"column {key} is the key, and the profile masks it; name the rows by another column")
        wanted = self._wanted
        if wanted is None:
            wanted = [f.name for f in schema if f.name not in {key, *_APART} and _may_hold_text(f.type)]
        self._searched = [name for name in wanted if name not in self._named]
        columns = [*self._named, *self._searched]
        return StepPlan(columns, [*columns, SEALED] if self._reversible else columns, version=self._version)

    def row(self, row: Row, key: str) -> Treated:
        mask = self._masker.for_row(row, key if self._by_row else None)
        values: dict[str, Any] = {
            name: _cell(mask.hide_value(entity, row[name])) for name, entity in self._named.items()
        }
        for name in self._searched:
            values[name] = _cell(mask.mask_value(row[name]))
            if values[name] is not None:
                mask.check(values[name])
        if self._reversible:
            sealed = sealed_map(mask, self._masker.entities)
            values[SEALED] = self._fields.encrypt(sealed, column=SEALED, record=key)
        return Treated(values)

    def type_of(self, column: str) -> pa.DataType:
        return pa.string()


class RestoreStep:
    """Values in place of the tokens that a masked row carries the map of."""

    action = "rows.restored"
    noted: Mapping[str, Any] = {}

    def __init__(self, *, fields: Fields, columns: Sequence[str] | None, whole: bool) -> None:
        """``whole``: a row from which a token is missing is rejected, too."""
        self._fields = fields
        self._wanted = columns
        self._whole = whole
        self._columns: list[str] = []
        self._types: dict[str, pa.DataType] = {}

    @property
    def opens(self) -> tuple[Act, Sequence[str] | None]:
        return "restore", self._wanted

    def prepare(self, schema: pa.Schema, key: str) -> StepPlan:
        if SEALED not in schema.names:
            raise SourceError(
                f"the rows have no column {SEALED}, which MaskRowsOperator adds; keep it with the masked texts"
            )
        self._columns = list(self._wanted or [])
        if self._wanted is None:
            self._columns = [f.name for f in schema if f.name not in {key, *_APART} and _holds_text(f.type)]
        self._types = {name: schema.field(name).type for name in self._columns if name in schema.names}
        version = [self._columns, self._whole]
        return StepPlan([*self._columns, SEALED], [*self._columns, *REPORT], drops=[SEALED], version=version)

    def row(self, row: Row, key: str) -> Treated:
        restorer = opened_map(self._fields.decrypt(row[SEALED], column=SEALED, record=key))
        report = restorer.report("\n".join(map(_shown, (row[name] for name in self._columns))))
        values = {name: _restored(restorer, row[name]) for name in self._columns}
        values |= zip(REPORT, (len(report.missing), len(report.unknown), len(report.repeated)), strict=True)
        return Treated(values, self._problem(report))

    def type_of(self, column: str) -> pa.DataType:
        return pa.int64() if column in REPORT else self._types[column]

    def _problem(self, report: TokenReport) -> str | None:
        if report.problem:
            return f"restore: {report.problem}"
        if self._whole and report.missing:
            return f"restore: tokens of the row that are missing: {len(report.missing)}"
        return None


class ProtectStep:
    """Columns encrypted, hashed, shifted or made coarse."""

    action = "rows.encrypted"
    opens = None

    def __init__(self, wanted: Mapping[str, Any], *, fields: Fields, table: str, key_id: str) -> None:
        self._treatments = [treatment(column, how) for column, how in wanted.items()]
        self._fields = fields
        self.noted = {"table": table, "key_id": key_id}
        self._wanted = {column: wanted[column] for column in sorted(wanted)}
        self._functions: dict[str, Callable[[Row, str], Any]] = {}
        self._types: dict[str, pa.DataType] = {}

    def prepare(self, schema: pa.Schema, key: str) -> StepPlan:
        columns = [one.column for one in self._treatments]
        reads = list(dict.fromkeys([*columns, *(one.subject for one in self._treatments if one.subject)]))
        for one in self._treatments:
            kind = schema.field(one.column).type if one.column in schema.names else pa.string()
            self._functions[one.column] = one.function(self._fields, kind_of(kind))
            self._types[one.column] = kind if one.keeps_type else pa.string()
        # Results that are compared need one key throughout: after a rotation such a table is made anew. Ciphertexts
        # name their keys, so parts closed with the old one stay.
        key_id = self.noted["key_id"] if any(one.one_key for one in self._treatments) else None
        return StepPlan(reads, columns, version=[self._wanted, self.noted["table"], key_id])

    def row(self, row: Row, key: str) -> Treated:
        return Treated({column: treat(row, key) for column, treat in self._functions.items()})

    def type_of(self, column: str) -> pa.DataType:
        return self._types[column]


class DecryptStep:
    """Encrypted columns as they were, with their types."""

    action = "rows.decrypted"

    def __init__(self, columns: Mapping[str, str], *, fields: Fields, table: str) -> None:
        """``columns``: name → domain of ``deterministic``, which for others does not matter."""
        self._columns = columns
        self._fields = fields
        self.noted = {"table": table}
        self._kinds: dict[str, tuple[str | None, type]] = {}

    @property
    def opens(self) -> tuple[Act, Sequence[str] | None]:
        return "decrypt", list(self._columns)

    def prepare(self, schema: pa.Schema, key: str) -> StepPlan:
        return StepPlan(list(self._columns), list(self._columns), version=[dict(self._columns), self.noted["table"]])

    def row(self, row: Row, key: str) -> Treated:
        values: dict[str, Any] = {}
        for column, domain in self._columns.items():
            value, kind = self._fields.decrypt_with_kind(row[column], column=column, record=key, domain=domain)
            found = (kind, type(value))
            if value is not None and self._kinds.setdefault(column, found) != found:
                raise PrivacyError(f"column {column}: the value has another type than those of the rows before it")
            values[column] = value
        return Treated(values)

    def type_of(self, column: str) -> pa.DataType | None:
        kind, _ = self._kinds.get(column, (None, None))
        return type_of(kind) if kind is not None else None


class ReencryptStep:
    """Ciphertexts under the active key, without a value being written in the clear."""

    action = "keys.reencrypted"
    opens = None

    def __init__(self, columns: Mapping[str, str], *, fields: Fields, table: str, key_id: str) -> None:
        self._columns = columns
        self._fields = fields
        self.noted = {"table": table, "key_id": key_id}

    def prepare(self, schema: pa.Schema, key: str) -> StepPlan:
        version = [dict(self._columns), self.noted["table"], self.noted["key_id"]]
        return StepPlan(list(self._columns), list(self._columns), version=version)

    def row(self, row: Row, key: str) -> Treated:
        again = self._fields.reencrypt
        return Treated(
            {name: again(row[name], column=name, record=key, domain=domain) for name, domain in self._columns.items()}
        )

    def type_of(self, column: str) -> pa.DataType:
        return pa.string()


def sealed_map(mask: RowMask, entities: Iterable[str]) -> dict[str, Any]:
    """A row's tokens and what they stand for, as values that can be encrypted."""
    raw = {token: str(value) for token, value in mask.originals.items() if isinstance(value, RawJson)}
    values = {token: value for token, value in mask.originals.items() if token not in raw}
    return {"types": sorted(entities), "texts": dict(mask.tokens), "raw": raw, "values": values}


def opened_map(sealed: Mapping[str, Any] | None) -> Restorer:
    """The restorer of a row, from what ``sealed_map`` made. Raises ``PrivacyError`` where a row has lost it."""
    if sealed is None:
        raise PrivacyError(f"{SEALED} is empty: the row has lost the map of its tokens")
    raw = {token: RawJson(text) for token, text in sealed["raw"].items()}
    return Restorer.of(sealed["types"], sealed["texts"], {**sealed["values"], **raw})


def domains(columns: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Columns with their domains: a column's own name, unless a mapping gives another."""
    return dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}


def _cell(value: Any) -> str | None:
    """A masked value in a column of text: what is nested is JSON."""
    match value:
        case None | str():
            return value
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                pass
            raise PrivacyError("bytes that are no UTF-8 text cannot be looked at; leave the column out, or encrypt it")
        case dict() | list() | tuple():
            return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        case _:
            return str(value)


def _restored(restorer: Restorer, value: Any) -> Any:
    restored = restore_value(restorer, value)
    # A text column holds text, also where a number was masked.
    return restored if type(restored) is type(value) else str(restored)


def _shown(value: Any) -> str:
    return (
        value if isinstance(value, str) else orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    )


def _may_hold_text(type_: pa.DataType) -> bool:
    """Everything but truth values, fractions and moments."""
    plain = pa.types.is_boolean(type_) or pa.types.is_floating(type_) or pa.types.is_temporal(type_)
    return not (plain or pa.types.is_null(type_))


def _holds_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_nested(type_)
