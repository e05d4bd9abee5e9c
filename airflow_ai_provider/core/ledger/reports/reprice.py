"""What another price list would have cost: every row of a period at its prices, beside what the row was billed at.

Nothing is written: a row keeps the price it was billed at. Only rows ``ok`` have token figures to price; ``unknown``
rows are counted apart, and nothing else costs anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, func, select

from airflow_ai_provider.core.errors import LedgerError, PolicyError
from airflow_ai_provider.core.ledger.call_costs import Rate, Usage, usd_from_nano
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.prices import litellm_rate, model_facts, policy_rate
from airflow_ai_provider.core.ledger.schema import llm_requests
from airflow_ai_provider.core.policy import Deployment, Price, parse_document, read_document

_C = llm_requests.c
GROUPINGS: Mapping[str, ColumnElement[Any]] = {
    "day": _C.created_at,
    "team": _C.team_id,
    "dag": _C.dag_id,
    "task": _C.task_id,
    "route": _C.route,
    "deployment": _C.deployment,
    "model": _C.model,
}
_BATCH = 5000  # rows in memory at once
_HUNDREDTH = Decimal("0.01")
_Row = tuple[Any, ...]

PriceBook = Callable[[str, str], Rate | None]
"""The rate of (deployment, model), or ``None`` where the list has no price of it."""


class PriceList(BaseModel):
    """A file of prices: a deployment's own price goes before its model's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    deployments: dict[str, Price] = Field(default_factory=dict)
    models: dict[str, Price] = Field(default_factory=dict)

    def book(self, source: str) -> PriceBook:
        def rate(deployment: str, model: str) -> Rate | None:
            price = self.deployments.get(deployment) or self.models.get(model)
            return policy_rate(price, source) if price else None

        return rate


def read_price_list(path: Path) -> PriceList:
    """Raises ``PolicyError`` that lists every finding as ``file:line: place: problem``."""
    text = read_document(path, "no price list there; expected a YAML file, policy or litellm")
    return parse_document(text, str(path), PriceList, "version, deployments and models")


def litellm_book(_deployment: str, model: str) -> Rate | None:
    """litellm's standard prices."""
    try:
        return litellm_rate(Deployment(model=model), "prices")
    except PolicyError:
        return None


def policy_book(find: Callable[[str], Deployment | None], digest: str) -> PriceBook:
    """The prices of a policy's deployments as they are now; ``find`` gives one by name.

    A deployment that has another model now says nothing of the old one's price.
    """

    def rate(name: str, model: str) -> Rate | None:
        deployment = find(name)
        if deployment is None or deployment.model != model:
            return None
        try:
            return model_facts(name, deployment, digest).rate
        except PolicyError:
            return None

    return rate


@dataclass(slots=True)
class Sums:
    """Of one group. Amounts in nano-dollars."""

    requests: int = 0
    billed: int = 0
    """What the ``requests`` were billed at."""
    repriced: int = 0
    """What they would have cost."""
    no_price: int = 0
    """Requests that the list has no price for; not among ``requests``."""
    no_price_billed: int = 0
    unknown: int = 0
    """Requests whose tokens are unknown."""
    unknown_billed: int = 0

    def row(self) -> dict[str, Any]:
        difference = self.repriced - self.billed
        percent = (Decimal(100 * difference) / self.billed).quantize(_HUNDREDTH) if self.billed else None
        return {
            "requests": self.requests,
            "billed_usd": usd_from_nano(self.billed),
            "repriced_usd": usd_from_nano(self.repriced),
            "difference_usd": usd_from_nano(difference),
            "difference_percent": "" if percent is None else percent,
            "no_price": self.no_price,
            "no_price_usd": usd_from_nano(self.no_price_billed),
            "unknown": self.unknown,
            "unknown_usd": usd_from_nano(self.unknown_billed),
        }


@dataclass(slots=True)
class Repriced:
    """What a period would have cost."""

    by: Sequence[str]
    groups: defaultdict[tuple[Any, ...], Sums] = field(default_factory=lambda: defaultdict(Sums))
    no_price: defaultdict[tuple[str, str], Sums] = field(default_factory=lambda: defaultdict(Sums))
    """By (deployment, model): what the list has no price for."""

    def rows(self) -> list[dict[str, Any]]:
        """A row per group, in order."""
        return [
            {**dict(zip(self.by, key, strict=True)), **sums.row()}
            for key, sums in sorted(self.groups.items(), key=lambda item: [str(part) for part in item[0]])
        ]


def reprice(
    ledger: Ledger,
    book: PriceBook,
    *,
    by: Sequence[str] = ("team",),
    since: date | None = None,
    until: date | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Repriced:
    """Price every row of the days (UTC) ``since`` to ``until`` inclusive by ``book``.

    Rows are streamed; ``on_rows`` hears how many were read so far. Raises ``LedgerError`` for a grouping that there is
    not.
    """
    if unknown := [name for name in by if name not in GROUPINGS]:
        raise LedgerError(f"cannot group by {', '.join(unknown)}; expected some of {', '.join(GROUPINGS)}")
    found, rates, read = Repriced(by), _Rates(book), 0
    for rows in _stream(ledger, by, since, until):
        for row in rows:
            _add(found, rates, row)
        read += len(rows)
        on_rows(read)
    return found


def count_rows(ledger: Ledger, *, since: date | None = None, until: date | None = None) -> int:
    """How many rows ``reprice`` will read."""
    with ledger.read() as conn:
        return int(
            conn.execute(select(func.count()).select_from(llm_requests).where(*_period(since, until))).scalar_one()
        )


class _Rates(dict[tuple[str, str], Rate | None]):
    """Each rate is looked up once."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book

    def __missing__(self, key: tuple[str, str]) -> Rate | None:
        rate = self[key] = self._book(*key)
        return rate


def _add(found: Repriced, rates: _Rates, row: _Row) -> None:
    deployment, model, status, cost, latency, given, made, cached, write, hour, *group = row
    key = tuple(_utc_day(part) if isinstance(part, datetime) else part for part in group)
    sums = found.groups[key]
    if status == "unknown":
        sums.unknown += 1
        sums.unknown_billed += cost
        return
    rate = rates[deployment, model]
    if rate is None:
        for missing in (sums, found.no_price[deployment, model]):
            missing.no_price += 1
            missing.no_price_billed += cost
        return
    seconds = None if latency is None else Decimal(latency) / 1000
    sums.requests += 1
    sums.billed += cost
    sums.repriced += rate.cost(Usage(given, made, cached or 0, write or 0, hour or 0), seconds)


def _stream(ledger: Ledger, by: Sequence[str], since: date | None, until: date | None) -> Iterator[Sequence[_Row]]:
    query: Any = select(
        _C.deployment,
        _C.model,
        _C.status,
        _C.cost_nano,
        _C.latency_ms,
        _C.input_tokens,
        _C.output_tokens,
        _C.cached_input_tokens,
        _C.cache_write_tokens,
        _C.cache_write_1h_tokens,
        *(GROUPINGS[name].label(f"by_{name}") for name in by),
    ).where(*_period(since, until))
    with ledger.read() as conn:
        yield from conn.execution_options(yield_per=_BATCH).execute(query).partitions()


def _period(since: date | None, until: date | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [_C.status.in_(("ok", "unknown"))]
    if since:
        conditions.append(_C.created_at >= _midnight(since))
    if until:
        conditions.append(_C.created_at < _midnight(until + timedelta(days=1)))
    return conditions


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _utc_day(moment: datetime) -> date:
    """SQLite gives back UTC without saying so."""
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
