"""Mask or encrypt tables before they are shared, and restore them: without a model, over any source and sink."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.operators.base import AIBaseOperator, at_least_one, parse_time_shard, require_text

if TYPE_CHECKING:
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.job import Caller
    from airflow_ai_provider.core.jobs.transform import Step
    from airflow_ai_provider.core.privacy.crypto.keyring import Keyring

_SCOPES = ("row", "run", "team")


class _RowsOperator(AIBaseOperator):
    """What the operators of this module share: rows, a key that names them, and whose keys are used.

    :param source: URI of the rows (templated).
    :param sink: folder or object-store URL of Parquet parts (templated).
    :param key: column that names a row, unique in the source; ``#row`` is the row's number (templated).
    :param team: whose keys are used (templated).
    :param shard: ``"INDEX/COUNT"``, the share of the source that this task instance takes.
    :param batch_rows: rows per batch and per part of the sink.
    :param max_error_rate: the task fails when a greater share of its rows ends with an error.
    """

    template_fields: Sequence[str] = ("source", "sink", "key", "team")
    ui_color = "#f6ecec"
    _opens = False
    """Whether keys must be there already: a fresh keyring opens nothing."""

    def __init__(
        self,
        *,
        source: str,
        sink: str,
        key: str,
        team: str,
        shard: Shard | Mapping[str, Any] | str | None = None,
        batch_rows: int = 1000,
        max_error_rate: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"{type(self).__name__} {self.task_id}", source=source, sink=sink, key=key, team=team)
        self.source = source
        self.sink = sink
        self.key = key
        self.team = team
        self.shard = parse_time_shard(shard)
        self.batch_rows = at_least_one("batch_rows", batch_rows)
        if not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate {max_error_rate}: expected a share between 0 and 1")
        self.max_error_rate = max_error_rate

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.installation import Installation
        from airflow_ai_provider.core.jobs.tally import check_error_rate
        from airflow_ai_provider.core.jobs.transform import ERROR, RowsJob, transform_rows
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        caller = caller_from_context(context)
        job = RowsJob(self.source, self.sink, self.key, self.team, self.shard, self.batch_rows)
        with Installation(settings_from_airflow()) as installation:
            step = self.step(installation, installation.keyring(create=not self._opens), caller)
            summary = transform_rows(job, step, caller, installation, log=self.log)
        check_error_rate(summary, self.max_error_rate, column=ERROR)
        return summary.to_dict()

    def step(self, installation: Installation, keyring: Keyring, caller: Caller) -> Step:
        """What is done to each row."""
        raise NotImplementedError


class MaskRowsOperator(_RowsOperator):
    """Put tokens in place of personal values, so that rows can be given to people and tools outside.

    The columns that the profile names are replaced whole; in the others values are looked for, at any nesting and in
    JSON inside texts. Masked columns become text. The way back travels with the rows, encrypted, in ``tokens_sealed``.

    :param profile: masking profile of the policy (templated).
    :param columns: columns to look for values in; ``None`` is all that may hold text or whole numbers, but the key.
    :param scope: within which one value has one token: ``row``, ``run`` or ``team``.
    :param reversible: whether the rows carry what ``RestoreRowsOperator`` needs.
    """

    template_fields: Sequence[str] = (*_RowsOperator.template_fields, "profile")

    def __init__(
        self,
        *,
        profile: str,
        columns: Sequence[str] | None = None,
        scope: str = "run",
        reversible: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"MaskRowsOperator {self.task_id}", profile=profile)
        if scope not in _SCOPES:
            raise ValueError(f"scope {scope!r}: expected one of {', '.join(_SCOPES)}")
        self.profile = profile
        self.columns = _names(columns)
        self.scope = scope
        self.reversible = reversible

    def step(self, installation: Installation, keyring: Keyring, caller: Caller) -> Step:
        from airflow_ai_provider.core.jobs.transforms import MaskStep
        from airflow_ai_provider.core.pipeline.prepare import profile_masker
        from airflow_ai_provider.core.privacy.crypto.fields import Fields

        profile = installation.policy.policy.profile(self.profile)
        where = [self.team] if self.scope == "team" else [self.team, caller.dag_id, caller.run_id]
        token_scope = json.dumps(["rows", self.scope, *where])
        return MaskStep(
            profile_masker(profile, keyring, team=self.team, scope=token_scope),
            profile.columns,
            fields=Fields(keyring, team=self.team),
            columns=self.columns,
            profile=self.profile,
            scope=self.scope,  # type: ignore[arg-type]  # one of _SCOPES
            reversible=self.reversible,
            version=[profile.model_dump(mode="json"), token_scope, keyring.active],
        )


class RestoreRowsOperator(_RowsOperator):
    """Put values back in place of the tokens of masked rows. Needs a permission of the policy, and is audited.

    Each row's tokens become values of that row only. A row is ``rejected`` if it has a token that is not its own, or
    what is left of one that cannot be read.

    :param columns: columns to restore; ``None`` is every column of text.
    :param whole: reject rows from which one of their tokens is missing, too.
    """

    _opens = True

    def __init__(
        self,
        *,
        columns: Sequence[str] | None = None,
        whole: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.columns = _names(columns)
        self.whole = whole

    def step(self, installation: Installation, keyring: Keyring, caller: Caller) -> Step:
        from airflow_ai_provider.core.jobs.transforms import RestoreStep
        from airflow_ai_provider.core.privacy.crypto.fields import Fields

        return RestoreStep(fields=Fields(keyring, team=self.team), columns=self.columns, whole=self.whole)


class EncryptColumnsOperator(_RowsOperator):
    """Encrypt columns, or hash, shift, coarsen or blank them; the other columns stay as they are.

    :param table: name that ciphertexts are bound to, besides column and row (templated).
    :param columns: column → what is done to it, such as ``{"iban": "encrypt", "age": {"generalise": 10}}``.
    """

    template_fields: Sequence[str] = (*_RowsOperator.template_fields, "table")

    def __init__(
        self,
        *,
        table: str,
        columns: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"EncryptColumnsOperator {self.task_id}", table=table)
        if not isinstance(columns, Mapping) or not columns:
            raise ValueError('columns: expected a mapping such as {"iban": "encrypt"}')
        self.table = table
        self.columns = dict(columns)

    def step(self, installation: Installation, keyring: Keyring, caller: Caller) -> Step:
        from airflow_ai_provider.core.jobs.transforms import ProtectStep
        from airflow_ai_provider.core.privacy.crypto.fields import Fields

        fields = Fields(keyring, team=self.team, table=self.table)
        return ProtectStep(self.columns, fields=fields, table=self.table, key_id=keyring.active)


class DecryptColumnsOperator(_RowsOperator):
    """Give encrypted columns back as they were, with their types. Needs a permission of the policy, and is audited.

    :param table: name that the ciphertexts are bound to (templated).
    :param columns: columns to decrypt; a mapping gives the domains of ``deterministic`` ones.
    """

    template_fields: Sequence[str] = (*_RowsOperator.template_fields, "table")
    _opens = True

    def __init__(
        self,
        *,
        table: str,
        columns: Sequence[str] | Mapping[str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"DecryptColumnsOperator {self.task_id}", table=table)
        if isinstance(columns, str) or not columns:
            raise ValueError('columns: expected names such as ["iban"]')
        self.table = table
        self.columns = dict(columns) if isinstance(columns, Mapping) else list(columns)

    def step(self, installation: Installation, keyring: Keyring, caller: Caller) -> Step:
        from airflow_ai_provider.core.jobs.transforms import DecryptStep, domains
        from airflow_ai_provider.core.privacy.crypto.fields import Fields

        fields = Fields(keyring, team=self.team, table=self.table)
        return DecryptStep(domains(self.columns), fields=fields, table=self.table)


def _names(columns: Sequence[str] | None) -> list[str] | None:
    if isinstance(columns, str):
        raise ValueError(f'columns {columns!r}: expected a list of names, such as ["{columns}"]')
    return None if columns is None else list(columns)
