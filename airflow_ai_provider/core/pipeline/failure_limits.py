"""Decides when a job stops asking a deployment, or stops at all, because the next rows would only fail alike.

A refused key, a wrong address or a parameter that the model does not take fails every row; a limit that is too small
truncates every answer. Such failures are counted per job, by pure records; a good answer proves that it is not so.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_ai_provider.core.errors import (
    AIProviderError,
    DeploymentGivenUp,
    JobGivenUp,
    JobGivenUpForNow,
    PermanentError,
    TransientError,
    VendorError,
)
from airflow_ai_provider.core.pipeline.answer import Answer

if TYPE_CHECKING:
    from airflow_ai_provider.core.pipeline.deployments import OpenDeployment, OpenTiers

IDENTICAL = 10
"""Refusals without a good answer in between after which a deployment is given up: of the deployment, or identical."""
_FIRST = {
    **dict.fromkeys(("redirected", "wrong_address", "certificate", "unknown_host"), 3),
    **dict.fromkeys(("malformed", "unexplained", "unexpected"), 5),
}
"""Fewer suffice of what a wrong address looks like, before the first good answer: each may cost a whole hold."""
_OF_DEPLOYMENT = frozenset(
    {
        "redirected",
        "wrong_address",
        "unauthorized",
        "payment_required",
        "quota_exhausted",
        "forbidden",
        "not_found",
        "http_405",
        "http_410",
    }
)
"""Kinds of permanent errors that no row is the cause of."""
_REFUSED = "refused"
"""Under which they are counted together."""
_OF_ROW = frozenset({"context_window", "content_policy", "too_large", "oversized", "http_451"})
"""Kinds of permanent errors that say something of their row alone."""
_REMEDIES = {
    "unauthorized": "the key is refused: check the API key of {connection}",
    "payment_required": "the vendor asks for payment: check balance and billing of the account of {connection}",
    "quota_exhausted": "the account's quota is spent: check balance and billing of the account of {connection}",
    "forbidden": "the key may not do this: check the rights of the account of {connection}, its model and its region",
    "not_found": "no such model or path: check the deployment's model, and api_base or the host of {connection}",
    "http_405": "no model answers at that path: check api_base or the host of {connection}",
    "http_410": "the model is retired: check the deployment's model",
    "bad_request": "the vendor refuses what every request has in common: check params, max_tokens, output_schema and "
    "tools; if it is these rows, repair or remove them",
    "unsupported_params": "the model does not take a parameter: check the deployment's and the route's params",
    "certificate": "check api_base or the host of {connection}; name an authority of your own by SSL_CERT_FILE",
}
_WRONG_ADDRESS = "no model answers there: check api_base or the host of {connection}, and any proxy on the way"
_ANSWER_REMEDIES = {
    "truncated": "raise max_tokens, or ask for shorter answers",
    "filtered": "the vendor's content filter holds the answers back: change the prompt, or the filter of the account",
    "refused": "the model declines the task: change the prompt, or choose another model",
    "empty": "raise max_tokens (a reasoning model may use all of it to think), or change the prompt",
    "schema": "check output_schema against the answers in the ledger's review items, or choose a model that follows it",
    "context_window": "choose a model with a larger context, or shorten the prompt",
    "content_policy": "change the prompt, or choose another model",
}
_OTHER_ANSWERS = "change the prompt, the route's checks or the model"


def concerns_deployment(error: VendorError) -> bool:
    """Whether a refusal says nothing of the row: the next deployment may answer it, and no person can mend it."""
    return error.kind in _OF_DEPLOYMENT


@dataclass(slots=True)
class DeploymentRecord:
    """What one deployment did in one job."""

    answered: bool = False
    """Whether it ever gave a good answer."""
    failures: Counter[str] = field(default_factory=Counter)
    """Failed calls since the last good answer: together if no row is the cause, since vendors' codes may differ each
    time; otherwise by message, which holds status and code."""

    def answer(self) -> None:
        self.answered = True
        if self.failures:
            self.failures.clear()

    def fail(self, error: VendorError) -> int | None:
        """Count a failed call. Returns how many count as the same where that is enough to give the deployment up."""
        allowed = self._allowed(error)
        if allowed is None:
            return None
        alike = _REFUSED if concerns_deployment(error) else str(error)
        self.failures[alike] += 1
        count = self.failures[alike]
        return count if count >= allowed else None

    @property
    def suspected(self) -> bool:
        """Whether its refusals may yet turn out to have nothing to do with their rows."""
        return not self.answered and bool(self.failures)

    def _allowed(self, error: VendorError) -> int | None:
        if error.kind in _OF_ROW:
            return None
        if not self.answered and error.kind in _FIRST:
            return _FIRST[error.kind]
        # What a model took once is no reason to refuse all that follows: then it is the row's own.
        refused = isinstance(error, PermanentError) and (not self.answered or concerns_deployment(error))
        return IDENTICAL if refused else None


@dataclass(slots=True)
class RowRecord:
    """How the first rows of a job ended, until one is good."""

    limit: int | None
    """Rows that may end badly; ``None`` is any number."""
    good: bool = False
    failures: Counter[str] = field(default_factory=Counter)
    """Rows by kind of failure."""

    def row(self, answer: Answer) -> str | None:
        """Count a row's end. Returns why the job is given up once the limit is reached."""
        if self.good or self.limit is None:
            return None
        if answer.status == "ok":
            self.good = True
        elif answer.error and (answer.status == "rejected" or answer.permanent):
            self.failures[answer.error.partition(":")[0]] += 1
            return rows_message(self.failures) if self.failures.total() >= self.limit else None
        return None


def deployment_message(error: VendorError, count: int, *, name: str, connection: str | None, host: str) -> str:
    """Why a deployment is given up: which one, what it answered, and what to do. Holds nothing of a row."""
    place = f"connection {connection}" if connection else "the deployment"
    other = _WRONG_ADDRESS if error.kind in _FIRST else _REMEDIES["bad_request"]
    remedy = _REMEDIES.get(error.kind, other).format(connection=place)
    said = str(error).removeprefix(f"{name}: ")
    where = ", ".join(part for part in (f"connection {connection}" if connection else "", host) if part)
    return f"deployment {name} ({where}) failed {count} times, the last as {error.kind}: {said}; {remedy}"


def rows_message(failures: Counter[str]) -> str:
    """Say why a job is given up whose first rows all ended badly: ``failures`` are their kinds."""
    ((most, _), *_) = kinds = failures.most_common()
    counted = ", ".join(f"{kind} {count}" for kind, count in kinds)
    remedy = _ANSWER_REMEDIES.get(most, _OTHER_ANSWERS)
    return (
        f"none of the first {failures.total()} rows was good ({counted}): {remedy}; "
        "where a table begins with so many bad rows, raise give_up_after"
    )


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why a deployment is given up."""

    message: str
    passing: bool
    """Whether trying again later may help."""


class GivingUp:
    """Keeps the records of one job, and closes the gates of what is given up. For one event loop."""

    def __init__(
        self,
        lanes: OpenTiers,
        *,
        give_up_after: int | None,
        on_given_up: Callable[[str, str, bool], None] = lambda *_: None,
    ) -> None:
        """``on_given_up`` is told the deployment, why, and whether its rows can go to others."""
        self._tiers = lanes
        self._lanes = {lane.name: lane for tier in lanes.values() for lane in tier}
        self._records = {name: DeploymentRecord() for name in self._lanes}
        self._rows = RowRecord(give_up_after)
        self._reasons: dict[str, _Reason] = {}
        self._on_given_up = on_given_up

    def answered(self, name: str) -> None:
        """A deployment gave an answer."""
        self._records[name].answer()

    def failed(self, name: str, error: VendorError) -> None:
        """A call failed; gives the deployment up where it is enough."""
        count = self._records[name].fail(error)
        if count is None or name in self._reasons:
            return
        lane = self._lanes[name]
        connection = lane.deployment.connection
        message = deployment_message(error, count, name=name, connection=connection, host=lane.host)
        self._give_up(name, _Reason(message, passing=isinstance(error, TransientError)))
        # Whatever a listener raises is the loop's to report: the call that failed must be settled.
        asyncio.get_running_loop().call_soon(self._on_given_up, name, message, self._others_serve(name))

    def row(self, answer: Answer) -> None:
        """A row was answered or refused; gives the job up once too many ended badly and none was good."""
        message = self._rows.row(answer)
        if message is not None:
            reason = _Reason(message, passing=False)
            for name in self._lanes:
                self._give_up(name, reason)

    def had_good_rows(self) -> None:
        """Rows of the job are known to be good, so that it is not given up for how its next rows end."""
        self._rows.good = True

    def given_up(self, name: str) -> bool:
        return name in self._reasons

    def job_error(self, lanes: Sequence[OpenDeployment]) -> AIProviderError | None:
        """What to raise where every one of these deployments is given up."""
        if not all(lane.name in self._reasons for lane in lanes):
            return None
        reasons = list(dict.fromkeys(self._reasons[lane.name] for lane in lanes))
        message = "; ".join(reason.message for reason in reasons)
        return JobGivenUpForNow(message) if any(reason.passing for reason in reasons) else JobGivenUp(message)

    def suspected(self, name: str | None) -> bool:
        """Whether a deployment's refusals may yet turn out to have nothing to do with their rows."""
        return name in self._records and self._records[name].suspected

    def _give_up(self, name: str, reason: _Reason) -> None:
        if name not in self._reasons:
            self._reasons[name] = reason
            self._lanes[name].gate.give_up(DeploymentGivenUp(reason.message))

    def _others_serve(self, name: str) -> bool:
        """Whether every tier that has the deployment has another one."""
        tiers = [[lane.name for lane in tier] for tier in self._tiers.values()]
        return all(any(other not in self._reasons for other in tier) for tier in tiers if name in tier)
