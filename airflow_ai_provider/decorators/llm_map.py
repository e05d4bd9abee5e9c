"""``@task.llm_map``: a function from a row to its prompt becomes a task over a whole source.

Airflow binds a TaskFlow function's arguments when the DAG is parsed; the row is only known much later. So Airflow is
shown a signature without the row, and with ``source``, ``sink`` and ``shard``, which may be given or mapped at the
call::

    @task.llm_map(key="inquiry_id", team="support", route="support", sink="/data/answers")
    def answer(row, tone):
        return f"Answer in a {tone} tone: {row['text']}"

    answer.partial(tone="friendly", source=prepare()).expand(shard=shards(4))

What the function returns goes to the gateway as it is. It is made of row data, so it is never rendered as a template
and never stored.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from airflow_ai_provider.operators.base import parse_time_shard
from airflow_ai_provider.operators.llm import LLMMapOperator

if TYPE_CHECKING:
    from airflow_ai_provider.core.job import MapJob

_AT_CALL = ("source", "sink", "shard")
"""Arguments of the task that may be given where the decorated function is called."""
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _LLMMapDecoratedOperator(DecoratedOperator, LLMMapOperator):
    """An ``LLMMapOperator`` whose prompt is a function of the row.

    :param python_callable: the function, with the signature that Airflow binds.
    :param op_args: its positional arguments after the row (templated).
    :param op_kwargs: its keyword arguments, and ``source``, ``sink`` and ``shard`` given at the call (templated).
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *LLMMapOperator.template_fields)
    custom_operator_name: str = "@task.llm_map"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        source: Any = None,
        sink: Any = None,
        **kwargs: Any,
    ) -> None:
        given = op_kwargs or {}
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            prompt=python_callable,
            source=given.get("source") or source,
            sink=given.get("sink") or sink,
            **kwargs,
        )

    def make_job(self, context: Context) -> MapJob:
        arguments = dict(self.op_kwargs)
        at_call = {name: arguments.pop(name, None) for name in _AT_CALL}
        self.source = at_call["source"] or self.source
        self.sink = at_call["sink"] or self.sink
        if at_call["shard"] is not None:
            self.shard = parse_time_shard(at_call["shard"])
        bound = self.determine_kwargs({**context, **arguments})
        self.prompt = _RowPrompt(self.python_callable, tuple(self.op_args), dict(bound))
        return super().make_job(context)


def llm_map_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Turn ``function(row, …) -> str | list of messages`` into a task that asks for every row of a source.

    :param python_callable: the function; its first parameter receives the row as a mapping of columns.
    :param kwargs: arguments of ``LLMMapOperator`` but ``prompt``, and of every Airflow task.
    """
    if "prompt" in kwargs:
        raise TypeError("@task.llm_map takes no prompt: the decorated function returns it")
    kwargs["multiple_outputs"] = False

    def decorate(function: Callable[..., Any]) -> TaskDecorator:
        return task_decorator_factory(
            python_callable=_without_row(function), decorated_operator_class=_LLMMapDecoratedOperator, **kwargs
        )

    return decorate(python_callable) if python_callable is not None else decorate  # type: ignore[return-value]


class _RowPrompt:
    """The decorated function with everything bound but the row."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        # The gateway makes finished parts anew when the code of a prompt function has changed.
        self.__code__ = getattr(inspect.unwrap(function), "__code__", None)

    def __call__(self, row: Mapping[str, Any]) -> Any:
        return self._function(row, *self._args, **self._kwargs)


def _without_row(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under the signature that Airflow is to bind. Raises ``TypeError`` where it cannot take a row."""
    name = getattr(function, "__name__", repr(function))
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"@task.llm_map: {name} is async; expected a plain function, it is called once per row")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        raise TypeError(f"@task.llm_map: {name} takes no row; expected {name}(row, …)")
    if taken := sorted(set(_AT_CALL) & {parameter.name for parameter in parameters[1:]}):
        raise TypeError(f"@task.llm_map: {name} has a parameter {taken[0]!r}, which is an argument of the task")

    @functools.wraps(function)
    def with_row(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    with_row.__signature__ = inspect.Signature(_bindable(parameters[1:]))  # type: ignore[attr-defined]
    return with_row


def _bindable(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _AT_CALL]
    last = parameters[-1:] if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    return [*parameters[: len(parameters) - len(last)], *own, *last]
