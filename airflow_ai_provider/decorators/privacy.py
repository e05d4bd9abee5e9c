"""``@task.mask_rows``, ``@task.restore_rows``, ``@task.encrypt_columns``, ``@task.decrypt_columns``.

The decorated function says where the rows are; the operator of the same name does the rest::

    @task.mask_rows(sink="/data/masked", key="id", team="support", profile="standard")
    def for_the_partner(ds):
        return f"/data/inquiries/{ds}.parquet"
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from airflow.sdk import Context
from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory
from airflow.sdk.exceptions import AirflowFailException

from airflow_ai_provider.operators.privacy import (
    DecryptColumnsOperator,
    EncryptColumnsOperator,
    MaskRowsOperator,
    RestoreRowsOperator,
)

_LATER = "(what the function returns)"


class _SourceOfFunction(DecoratedOperator):
    """Takes the source from the function, when the task runs."""

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, "sink", "key", "team")
    custom_operator_name: str = ""
    source: str

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, source=_LATER, **kwargs)

    def run(self, context: Context) -> Any:
        arguments = self.determine_kwargs({**context, **self.op_kwargs})
        source = self.python_callable(*self.op_args, **arguments)
        if not isinstance(source, str) or not source.strip():
            raise AirflowFailException(
                f"{self.custom_operator_name}: the function returned {type(source).__name__}; expected the URI of rows"
            )
        self.source = source
        return super().run(context)  # type: ignore[misc]  # the operator beside this class


class _MaskRows(_SourceOfFunction, MaskRowsOperator):
    template_fields: Sequence[str] = (*_SourceOfFunction.template_fields, "profile")
    custom_operator_name: str = "@task.mask_rows"


class _RestoreRows(_SourceOfFunction, RestoreRowsOperator):
    custom_operator_name: str = "@task.restore_rows"


class _EncryptColumns(_SourceOfFunction, EncryptColumnsOperator):
    template_fields: Sequence[str] = (*_SourceOfFunction.template_fields, "table")
    custom_operator_name: str = "@task.encrypt_columns"


class _DecryptColumns(_SourceOfFunction, DecryptColumnsOperator):
    template_fields: Sequence[str] = (*_SourceOfFunction.template_fields, "table")
    custom_operator_name: str = "@task.decrypt_columns"


def mask_rows_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Mask the rows whose URI the function returns; arguments as for ``MaskRowsOperator`` but ``source``."""
    return _decorator(_MaskRows, python_callable, kwargs)


def restore_rows_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Restore the rows whose URI the function returns; arguments as for ``RestoreRowsOperator`` but ``source``."""
    return _decorator(_RestoreRows, python_callable, kwargs)


def encrypt_columns_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Encrypt the rows whose URI the function returns; arguments as for ``EncryptColumnsOperator`` but ``source``."""
    return _decorator(_EncryptColumns, python_callable, kwargs)


def decrypt_columns_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Decrypt the rows whose URI the function returns; arguments as for ``DecryptColumnsOperator`` but ``source``."""
    return _decorator(_DecryptColumns, python_callable, kwargs)


def _decorator(
    operator: type[_SourceOfFunction], python_callable: Callable[..., Any] | None, kwargs: dict[str, Any]
) -> TaskDecorator:
    if "source" in kwargs:
        raise TypeError(f"{operator.custom_operator_name} takes no source: the decorated function returns it")
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=operator, multiple_outputs=False, **kwargs
    )
