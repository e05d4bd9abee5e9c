"""Money as integers: one nano-dollar is 10⁻⁹ USD. Prices are decimals per token; costs round up, never down."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

NANO = 1_000_000_000
MESSAGE_OVERHEAD_TOKENS = 16
"""Tokens a vendor may add per message for roles and separators. OpenAI documents 3-4; the rest is margin."""
REQUEST_OVERHEAD_TOKENS = 64
"""Tokens a vendor may add per request, such as the primer of the reply."""


def nano_from_usd(usd: Decimal) -> int:
    """Exact conversion; raises ``ValueError`` where ``usd`` has a part smaller than a nano-dollar."""
    nano = usd * NANO
    if nano != nano.to_integral_value():
        raise ValueError(f"{usd} USD is finer than a nano-dollar")
    return int(nano)


@lru_cache(maxsize=1024)
def usd_from_nano(nano: int) -> Decimal:
    return Decimal(nano) / NANO


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens one attempt was billed for. Of ``input``, ``cached_input`` were read from the vendor's prompt cache, and
    ``cache_write`` were written to it."""

    input: int
    output: int
    cached_input: int = 0
    cache_write: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A price that holds above a number of input tokens. Amounts in nano-dollars per token."""

    above_input_tokens: int
    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal


@dataclass(frozen=True, slots=True)
class Rate:
    """The price list of one deployment: steps by input size, lowest threshold first, and a charge per request."""

    steps: tuple[Step, ...]
    per_request_nano: Decimal
    version: str
    """Where the price comes from, recorded with every row."""

    def cost(self, usage: Usage) -> int:
        """What the vendor charges for ``usage``, in nano-dollars, rounded up."""
        step = next(s for s in reversed(self.steps) if usage.input > s.above_input_tokens or s is self.steps[0])
        fresh = usage.input - usage.cached_input
        amount = step.input * fresh + step.cached_input * usage.cached_input + step.output * usage.output
        return _up(amount + self.per_request_nano)

    def bound(self, *, input_bytes: int, messages: int, max_tokens: int) -> int:
        """An upper bound of what one request can cost, in nano-dollars.

        A token is at least one byte of UTF-8, so that bytes bound input tokens for every byte-level tokenizer;
        output is bounded by ``max_tokens``; the dearest step and kind of input token is taken.
        """
        tokens = input_bytes + MESSAGE_OVERHEAD_TOKENS * messages + REQUEST_OVERHEAD_TOKENS
        dearest = max(max(s.input, s.cached_input, s.cache_write) for s in self.steps)
        return _up(dearest * tokens + max(s.output for s in self.steps) * max_tokens + self.per_request_nano)


def flat_rate(
    *, input_per_mtok: Decimal, output_per_mtok: Decimal, cached_per_mtok: Decimal, per_request: Decimal, version: str
) -> Rate:
    """A rate without steps, from USD per million tokens and USD per request."""
    step = Step(
        above_input_tokens=0,
        input=input_per_mtok * 1000,
        output=output_per_mtok * 1000,
        cached_input=cached_per_mtok * 1000,
        cache_write=input_per_mtok * 1000,
    )
    return Rate((step,), per_request * NANO, version)


def _up(amount: Decimal) -> int:
    return int(amount.to_integral_value(rounding=ROUND_CEILING))
