"""The gate of a deployment: when a request may leave."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow_ai_provider.errors import VendorError
from airflow_ai_provider.gateway.pace import Pacer
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.policy import Deployment


class Pass:
    def __init__(self, pacer: Pacer, expected: int) -> None:
        self._pacer = pacer
        self._expected = expected

    def answered(self, *, usage: Usage | None, limits: Any, seconds: float) -> None:
        if usage:
            self._pacer.used(expected=self._expected, actual=usage.input + usage.output)

    def failed(self, error: VendorError, seconds: float) -> None:
        if error.retry_after:
            self._pacer.cool_down(error.retry_after)

    def unused(self) -> None:
        self._pacer.used(expected=self._expected, actual=0)

    def leave(self) -> None:
        self._pacer.slots.release()


class Gate:
    def __init__(self, deployment: Deployment) -> None:
        self._pacer = Pacer(
            requests_per_minute=deployment.requests_per_minute,
            tokens_per_minute=deployment.tpm,
            concurrency=deployment.concurrency,
        )

    async def enter(self, *, input_tokens: int, output_tokens: int) -> Pass:
        await self._pacer.slots.acquire()
        try:
            await self._pacer.wait(input_tokens + output_tokens)
        except BaseException:
            self._pacer.slots.release()
            raise
        return Pass(self._pacer, input_tokens + output_tokens)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        pass
