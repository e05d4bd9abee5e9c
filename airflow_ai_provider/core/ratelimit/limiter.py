"""Limiters, in process and on Redis, and the gates that are opened over them.

The desk inside one process: where nothing is shared, and where what is shared cannot be reached.

The desk on Redis, shared by all workers: one script on Redis' clock, one round trip for all that a process asks.

Never in a row's way: if Redis cannot be reached, a desk of this process' own goes on with the part of the limits that
was its own when Redis was last heard of, and a background task looks for Redis. What a lost reply granted is lost.

From the policy's deployments to gates.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

import orjson

from airflow_ai_provider.core.errors import StoreUnavailable
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.ratelimit.limits import (
    OTHERS,
    Ask,
    CircuitChanged,
    Gate,
    Grant,
    Limiter,
    Permits,
    Terms,
    key_of,
    terms_of,
)
from airflow_ai_provider.core.ratelimit.queue import ProcessGate
from airflow_ai_provider.core.ratelimit.rules import SETTLE, State, debts, new_state, serve
from airflow_ai_provider.core.redis_errors import RETRY_SECONDS, refusal_of


class LocalLimiter:
    """Keeps one deployment's limits in memory."""

    def __init__(
        self, terms: Terms, *, clock: Callable[[], float] = time.monotonic, state: State | None = None
    ) -> None:
        self._terms = terms
        self._clock = clock
        self._state = state or new_state(terms, "here")

    async def ask(self, ask: Ask) -> Grant:
        await asyncio.sleep(0)  # others get their turn, as while Redis answers
        return serve(self._state, self._terms, ask, self._clock())

    async def close(self) -> None:
        """Nothing to close."""


log = logging.getLogger(__name__)

TIMEOUT = 1.0
"""Seconds for one round trip; Redis answers in less than one thousandth of that."""
RECONNECT = 0.25
"""Seconds between two looks for a Redis that is away: all workers are back within ``SETTLE``."""
CAREFUL = 0.9
"""How much of its part a process uses alone: schedules that know nothing of each other do not interleave."""
UNSEEN_WORKERS = 10
"""How many workers a process that never reached Redis takes itself to be one of."""
_DRIFT = 1e-4
"""How far the two clocks may part in a second."""
_SCRIPT = resources.files(__package__).joinpath("rules.lua").read_bytes()
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()  # how Redis names scripts
_PREFIX = b"ai:traffic:"


class Link:
    """One connection to Redis for all deployments of a process; knows whether it is up, and whether it refuses."""

    def __init__(self, url: str) -> None:
        """Raises ``StoreUnavailable`` where ``url`` is none."""
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self._gone = (RedisError, OSError, TimeoutError)
        try:
            self._redis = redis.asyncio.Redis.from_url(
                url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
            )
        except ValueError:
            raise StoreUnavailable("pacing: not a Redis URL; check the connection of cache_conn_id") from None
        self._looking: asyncio.Task[None] | None = None
        self._refused_until = 0.0
        self._told = ""
        """The refusal that was logged last."""
        self._users = 0

    def use(self) -> None:
        self._users += 1

    async def run(self, key: bytes, ask: bytes, terms: bytes) -> bytes | None:
        """The script's answer; ``None`` while Redis is away."""
        if self._looking is not None or time.monotonic() < self._refused_until:
            return None
        try:
            return await self._evaluate(key, ask, terms)
        except self._gone as error:
            if (refusal := refusal_of(error)) is not None:
                self._refused(refusal)
            else:
                self._lost(error)
            return None

    async def _evaluate(self, key: bytes, ask: bytes, terms: bytes) -> bytes:
        from redis.exceptions import NoScriptError

        client: Any = self._redis
        try:
            answer: bytes = await client.evalsha(_SHA, 1, key, ask, terms)
        except NoScriptError:
            answer = await client.eval(_SCRIPT, 1, key, ask, terms)
        return answer

    def _refused(self, refusal: str) -> None:
        """Leave a Redis that answers and refuses alone for a while; a ping would not tell when that has ended."""
        self._refused_until = time.monotonic() + RETRY_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        if refusal != self._told:
            self._told = refusal
            log.warning("pacing: %s; going on with this process' own part", refusal)

    def _lost(self, error: Exception) -> None:
        if self._looking is None:
            log.warning("pacing: Redis is away (%s); going on with this process' own part", type(error).__name__)
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        client: Any = self._redis
        while True:
            await asyncio.sleep(RECONNECT * random.uniform(0.8, 1.2))  # noqa: S311 - spreads workers, keeps no secret
            with contextlib.suppress(*self._gone):
                await client.ping()
                break
        log.info("pacing: Redis is back")
        self._looking = None

    async def close(self) -> None:
        """Called once by each user; the last one closes."""
        self._users -= 1
        if self._users > 0:
            return
        if self._looking is not None:
            self._looking.cancel()
        with contextlib.suppress(*self._gone):
            await self._redis.aclose()


class RedisLimiter:
    """One deployment's limits on Redis."""

    def __init__(self, link: Link, key: str, terms: Terms, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        link.use()
        self._key = _PREFIX + key.encode()
        self._terms = terms
        self._terms_json = terms.as_json()
        self._clock = clock
        self._offset = RemoteClock()
        self._last: Grant | None = None
        self._alone: LocalLimiter | None = None
        self._settled_at = 0.0
        """Until then what is given back may be of the desk before."""

    async def ask(self, ask: Ask) -> Grant:
        if self._alone is not None or self._clock() < self._settled_at:
            ask = replace(ask, back=debts(ask.back))
        shared = replace(ask, epoch=self._last.epoch if self._last else "")
        answer = await self._link.run(self._key, orjson.dumps(_as_json(shared)), self._terms_json)
        if answer is None:
            return await self._ask_alone(ask)
        if self._alone is not None:
            self._alone, self._settled_at = None, self._clock() + SETTLE
        self._last = self._grant(orjson.loads(answer))
        return self._last

    async def close(self) -> None:
        await self._link.close()

    def _grant(self, said: dict[str, Any]) -> Grant:
        here = self._offset.here(float(said["now"]), self._clock())
        permits = {limit: Permits(here + start, gap, units) for limit, (start, gap, units) in said["permits"].items()}
        return Grant(
            epoch=said["epoch"],
            permits=permits,
            slots=int(said["slots"]),
            cool_until=here + said["cool"],
            circuit=said["circuit"],
            changed=said["changed"],
            reason=said["reason"],
            probe=said["probe"],
            probe_at=here + said["probe_in"],
            catch_up=said["catch_up"],
            fraction=said["fraction"],
        )

    async def _ask_alone(self, ask: Ask) -> Grant:
        if self._alone is None:
            self._alone, ask = self._left_alone(), replace(ask, back=debts(ask.back))
        return await self._alone.ask(replace(ask, team=OTHERS, epoch=""))

    def _left_alone(self) -> LocalLimiter:
        """A desk for this process' part, which heeds what Redis last said and lets the permits of before be used up."""
        last, now = self._last, self._clock()
        terms = self._terms.part(CAREFUL * last.fraction if last else 1 / UNSEEN_WORKERS)
        state = new_state(terms, "alone")
        if last is not None:
            state.hold_until = now + SETTLE
            state.cool_until = last.cool_until
            if last.circuit != "closed":
                state.circuit.state, state.circuit.probe_at = "open", max(now, last.probe_at)
        return LocalLimiter(terms, clock=self._clock, state=state)


class RemoteClock:
    """Turns moments of another clock into ours. The least delay ever seen is the best guess, as in NTP's filter: a slow
    round trip then moves no permit."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._seen = 0.0

    def here(self, there: float, received: float) -> float:
        """Our moment for ``there``, which arrived at ``received``."""
        offset = received - there
        if self._offset is not None:
            known = self._offset + (received - self._seen) * _DRIFT
            if offset < known + TIMEOUT:  # otherwise that clock was set back, and nothing is known of it
                offset = min(offset, known)
        self._offset, self._seen = offset, received
        return there + offset


def _as_json(ask: Ask) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(ask, name) for name in Ask.__slots__}
    fields["units"] = {limit: list(wanted) for limit, wanted in ask.units.items()}
    return fields


_FIRST_CALLS = 5
"""Calls of a process under way at once, before one was answered: at a wrong address each may cost a whole hold."""


def open_gates(
    deployments: Mapping[str, Deployment],
    *,
    team: str,
    cache_url: str | None,
    worker: str | None = None,
    on_change: Callable[[CircuitChanged], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Gate]:
    """A gate before each deployment, by name, for the calls of one team. Close each of them.

    Deployments should be as called, with the ``api_base`` of their connection: those of the same name, model, base and
    connection share their limits. Without ``cache_url`` a process has limits of its own, and its team just its share.
    ``worker`` names who sends: who takes another one's name, as the next try of its task, has its slots. Connects to
    nothing yet. Raises ``PolicyError`` where a deployment has nothing left for the team, and ``StoreUnavailable`` where
    ``cache_url`` is no Redis URL.
    """
    terms = {name: terms_of(name, deployment, team) for name, deployment in deployments.items()}
    link = Link(cache_url) if cache_url else None

    def desk(name: str) -> tuple[Terms, Limiter]:
        if link is not None:
            return terms[name], RedisLimiter(link, key_of(name, deployments[name]), terms[name], clock=clock)
        own = terms[name].part(terms[name].shares[terms[name].team(team)])
        return own, LocalLimiter(own, clock=clock)

    gates: dict[str, Gate] = {}
    for name in deployments:
        own, its_desk = desk(name)
        gates[name] = ProcessGate(
            name, own, team, its_desk, worker=worker, first_calls=_FIRST_CALLS, on_change=on_change, clock=clock
        )
    return gates
