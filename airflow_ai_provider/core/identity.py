"""Names of requests: the same for the same thing, for ever.

``request_id`` names a row's request across retries and clears; ``attempt_id`` is new for each HTTP request; the reuse
key names an answer: two requests that could be answered differently never share one.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from airflow_ai_provider.core.job import Caller, Message
from airflow_ai_provider.core.policy import Deployment, Route

_KEY_VERSION = 1
"""Raised when the meaning of a stored answer changes; older answers are then not found."""


def request_id(caller: Caller, row_key: str, step: str) -> str:
    """32 hex digits from (dag, run, task, map index, row key, step)."""
    parts = (caller.dag_id, caller.run_id, caller.task_id, caller.map_index, row_key, step)
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:32]


def attempt_id(now: datetime) -> str:
    """32 hex digits that sort by time: 48 bits of milliseconds, 48 random bits of this process, 32 bits counting up."""
    return f"{int(now.timestamp() * 1000):012x}{_process.mark}{next(_process.numbers) & 0xFFFFFFFF:08x}"


def owner_id(now: datetime) -> str:
    """Names one process' run of a task in the ledger, at the ledger's time: of two tries with one number the later
    one's is the greater."""
    return f"{int(now.timestamp() * 1000):012x}{os.urandom(10).hex()}"


class _Process:
    """What tells this process' ids from any other's; drawn once, since a system call for each is slow."""

    def __init__(self) -> None:
        self.mark = os.urandom(6).hex()
        self.numbers = itertools.count()


_process = _Process()
os.register_at_fork(after_in_child=_process.__init__)  # type: ignore[misc]  # a child is another process


def token_scope(route: Route, team: str, caller: Caller) -> str:
    """Where a masked value keeps its token: as wide as answers are shared, so that equal rows stay equal.

    Where no answer is shared, the preparer narrows the run's scope to the row.
    """
    match route.reuse.scope:
        case "team":
            return _joined("team", team)
        case "dag":
            return _joined("dag", team, caller.dag_id)
        case _:
            return _joined("run", team, caller.dag_id, caller.run_id)


def _joined(*names: str) -> str:
    """Names as JSON: whatever stands in them, two different lists of names never read the same."""
    return orjson.dumps(names).decode()


def reuse_scope(route: Route, team: str, caller: Caller, row_key: str) -> str:
    """Who shares an answer. With reuse off it is the row of this run alone: a retry still finds what was paid for."""
    if route.shares_nothing:
        return _joined("row", team, request_id(caller, row_key, "reuse"))
    return token_scope(route, team, caller)


def arm_scope(scope: str, arm: str) -> str:
    """Who shares an answer that another deployment gave in place of ``arm``, the one that a trial's weights picked.

    The arms of a trial are not answered from each other; a retry still finds what was paid for.
    """
    return _joined("arm", scope, arm)


def run_tag(caller: Caller) -> str:
    """Names the run that paid for an answer."""
    return hashlib.sha256(orjson.dumps((caller.dag_id, caller.run_id))).hexdigest()[:16]


class ReuseKey:
    """Makes the keys of one job's answers by one deployment; what is the same for all rows is hashed once."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        max_tokens: int,
        output_schema: Mapping[str, Any] | None,
        prompt_version: str,
        params: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] | None = None,
    ) -> None:
        """``params`` are the route's and its tier's, which go before the deployment's."""
        sent = {**deployment.params, **(params or {})}
        place = (deployment.model, deployment.api_base, deployment.connection, sent)
        called = (tools, tool_choice) if tools else ()
        common = (_KEY_VERSION, place, max_tokens, output_schema, prompt_version, *called)
        self._common = hashlib.sha256(orjson.dumps(common, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))

    def of(self, scope: str, messages: Sequence[Message]) -> bytes:
        """32 bytes for the masked ``messages`` of one row."""
        digest = self._common.copy()
        digest.update(orjson.dumps((scope, messages), option=orjson.OPT_SORT_KEYS))
        return digest.digest()
