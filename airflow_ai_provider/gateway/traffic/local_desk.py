"""The desk inside one process: where nothing is shared, and where what is shared cannot be reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from airflow_ai_provider.gateway.traffic.desk import Ask, Grant
from airflow_ai_provider.gateway.traffic.rules import State, new_state, serve
from airflow_ai_provider.gateway.traffic.terms import Terms


class LocalDesk:
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
