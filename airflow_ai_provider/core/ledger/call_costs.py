"""Money as integers: one nano-dollar is 10⁻⁹ USD. Prices are decimals per token; costs round up, never down.

Sums are exact: an operation on prices that would have to round raises instead (``decimal.Inexact``).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from functools import lru_cache

NANO = 1_000_000_000
_EXACT = Context(prec=80, traps=[InvalidOperation, DivisionByZero, Overflow, Inexact])
"""Room for any price times any number of tokens; what does not fit is an error, not a rounding."""
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


class Unpriced(ValueError):
    """Something was charged for which there is no price."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens one attempt was billed for. No token is counted twice: ``cached_input`` and ``cache_write`` are two
    separate parts of ``input``, and ``cache_write_1h`` is a part of ``cache_write``."""

    input: int
    output: int
    cached_input: int = 0
    """Read from the vendor's prompt cache."""
    cache_write: int = 0
    """Written to the vendor's prompt cache."""
    cache_write_1h: int = 0
    """Written to be kept for an hour instead of minutes, which some vendors charge more for."""
    other: tuple[tuple[str, int], ...] = ()
    """Parts of ``input`` and ``output`` with prices of their own, such as ``audio_input``, and other charged units. Not
    kept in the ledger."""


@dataclass(frozen=True, slots=True)
class Step:
    """A price that holds above a number of input tokens. Amounts in nano-dollars per token."""

    above_input_tokens: int
    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal

    @property
    def highest_input(self) -> Decimal:
        return max(self.input, self.cached_input, self.cache_write, self.cache_write_1h)


@dataclass(frozen=True, slots=True)
class Rate:
    """The price list of one deployment: steps by input size, lowest threshold first; charges per request and second.

    All that may be charged for one attempt is below its ``bound``, as long as the vendor counts no more input tokens
    than bytes were sent (with the overheads), and no more output tokens than were allowed.
    """

    steps: tuple[Step, ...]
    per_request_nano: Decimal
    version: str
    """Where the price comes from, recorded with every row."""
    per_second_nano: Decimal = Decimal(0)
    other: tuple[tuple[str, Decimal], ...] = ()
    """Prices of other tokens than text, in nano-dollars, by the names of ``Usage.other``."""
    most_seconds: int | None = None
    """Seconds after which an attempt is given up, so that no more of them count; ``None`` is no such limit."""

    def cost(self, usage: Usage, seconds: Decimal | None = None) -> int:
        """What is charged for ``usage`` and ``seconds`` of work, in nano-dollars, rounded up.

        ``seconds`` of ``None`` were not measured: the most there can be are charged. Raises ``ValueError`` where a
        second has a price and their number is not known, and ``Unpriced`` where a part of ``usage`` has no price.
        """
        step = next(s for s in reversed(self.steps) if usage.input > s.above_input_tokens or s is self.steps[0])
        fresh = usage.input - usage.cached_input - usage.cache_write
        output, amount = usage.output, self.per_request_nano
        if usage.other:
            fresh, output, amount = self._others(usage, fresh, amount)
        amount = _EXACT.fma(step.input, fresh, amount)
        amount = _EXACT.fma(step.output, output, amount)
        if usage.cached_input:
            amount = _EXACT.fma(step.cached_input, usage.cached_input, amount)
        if usage.cache_write:
            amount = _EXACT.fma(step.cache_write, usage.cache_write - usage.cache_write_1h, amount)
            amount = _EXACT.fma(step.cache_write_1h, usage.cache_write_1h, amount)
        if self.per_second_nano:
            amount = _EXACT.fma(self.per_second_nano, self._counted(seconds), amount)
        return _up(amount)

    def _others(self, usage: Usage, fresh: int, amount: Decimal) -> tuple[int, int, Decimal]:
        """Input and output that are left for the prices of text, and ``amount`` with what is not."""
        prices, output = dict(self.other), usage.output
        for kind, count in usage.other:
            if kind not in prices:
                raise Unpriced(f"{kind} has no price")
            amount = _EXACT.fma(prices[kind], count, amount)
            if kind.endswith("_input"):
                fresh -= count
            else:
                output -= count
        in_cache = (
            fresh < usage.input - usage.cached_input - usage.cache_write and usage.cached_input + usage.cache_write
        )
        if fresh < 0 or output < 0 or in_cache:  # which of them were cached is not said
            raise Unpriced("the parts of the usage do not add up")
        return fresh, output, amount

    def bound(self, *, input_bytes: int, messages: int, max_tokens: int) -> int:
        """An upper bound of what one request can cost, in nano-dollars.

        A token is at least one byte of UTF-8, so that bytes bound input tokens for every byte-level tokenizer;
        output is bounded by ``max_tokens``, time by ``most_seconds``; the highest price of all steps and kinds of input
        token is taken.
        """
        tokens = input_bytes + MESSAGE_OVERHEAD_TOKENS * messages + REQUEST_OVERHEAD_TOKENS
        amount = _EXACT.fma(max(s.highest_input for s in self.steps), tokens, self.per_request_nano)
        amount = _EXACT.fma(max(s.output for s in self.steps), max_tokens, amount)
        if self.per_second_nano:
            amount = _EXACT.fma(self.per_second_nano, self._counted(None), amount)
        return _up(amount)

    def _counted(self, seconds: Decimal | None) -> Decimal:
        most = None if self.most_seconds is None else Decimal(self.most_seconds)
        if seconds is not None:
            return seconds if most is None else min(seconds, most)
        if most is None:
            raise ValueError("a price per second needs the seconds, or the most there can be")
        return most


def _up(amount: Decimal) -> int:
    return int(amount.to_integral_value(rounding=ROUND_CEILING))
