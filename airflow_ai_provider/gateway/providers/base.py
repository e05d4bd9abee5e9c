"""What a wire adapter is: one HTTP request in, its answer or one of our errors out. It never retries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from airflow_ai_provider.ledger.money import Usage


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One masked request."""

    attempt_id: str
    """Sent as ``Idempotency-Key`` to vendors that honour one."""
    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    max_tokens: int
    output_schema: Mapping[str, Any] | None
    timeout: float
    """Seconds until the attempt counts as lost."""


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One answer. ``usage`` is ``None`` where the vendor did not say: it may have charged anything up to the hold."""

    text: str = field(repr=False)
    usage: Usage | None
    finish_reason: str


class Provider(Protocol):
    """Speaks to one deployment."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Send one request. Raises ``VendorTransientError`` or ``VendorPermanentError``, nothing else."""
        ...

    async def close(self) -> None: ...
