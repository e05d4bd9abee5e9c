"""Deployments: one model at one place, its price, its limits and what it can take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from airflow_ai_provider.core.policy.fields import Duration, Params, Section, Usd, as_word, is_off, is_reserved

DEFAULT_RPM = 1000
"""Requests per minute of a deployment for which the policy says nothing."""


def _requests(value: Any) -> Any:
    if value is None or value == "unlimited" or (type(value) is int and value > 0):
        return value
    raise ValueError("expected a number of requests above 0, or unlimited")


class PriceAbove(Section):
    """What tokens cost in a request of more input tokens than a threshold. USD per million tokens."""

    input_per_mtok: Usd | None = None
    """``None``: as below the threshold; so with the others."""
    output_per_mtok: Usd | None = None
    cached_input_per_mtok: Usd | None = None
    cache_write_per_mtok: Usd | None = None
    cache_write_1h_per_mtok: Usd | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("names no price; give input_per_mtok and output_per_mtok, or what else changes there")
        return self


class Price(Section):
    """What a deployment costs, where litellm's map does not know it or is to be overridden."""

    input_per_mtok: Usd = Decimal(0)
    """USD per million input tokens."""
    output_per_mtok: Usd = Decimal(0)
    cached_input_per_mtok: Usd | None = None
    """``None``: cached input costs what input costs."""
    cache_write_per_mtok: Usd | None = None
    """``None``: what is written to the vendor's cache costs what input costs."""
    cache_write_1h_per_mtok: Usd | None = None
    """``None``: what is kept for an hour costs what other cache writes cost."""
    per_request: Usd = Decimal(0)
    per_second: Usd = Decimal(0)
    """USD per second from sending a request to its answer, for models that are paid by time."""
    above: dict[Annotated[int, Field(gt=0)], PriceAbove] = Field(default_factory=dict)
    """Prices by the number of input tokens above which they hold, for the whole request."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """A price that leaves something out would make it free."""
        given = self.model_fields_set
        if not given:
            raise ValueError("names no price; write input_per_mtok: 0 and output_per_mtok: 0 if it is free")
        missing = {"input_per_mtok", "output_per_mtok"} - given
        if missing and given - {"per_request", "per_second"}:
            raise ValueError(f"{' and '.join(sorted(missing))} is not given; write 0 if it is free")
        return self


class Breaker(Section):
    """When a failing deployment rests for everybody. Only 5xx, time-outs and lost connections count as failures."""

    failures: int = Field(default=5, ge=1, le=1000)
    """Failures in a row, of all workers together."""
    failure_percent: float = Field(default=50, gt=0, le=100)
    """Failures among the calls of the last ``window``."""
    calls: int = Field(default=20, ge=1)
    """Fewer calls than this in the ``window`` say nothing of a percentage."""
    window: Duration = Field(default=10, gt=0, le=3600)
    probe_every: Duration = Field(default=5, gt=0, le=3600)
    """Seconds between two probes of a deployment that rests; the first ones follow sooner."""


class Deployment(Section):
    """One model at one place, with its limits."""

    model: str = Field(pattern=r"^[^/\s]+/\S+$")
    """``provider/name`` as litellm writes it, or ``offline/extractive``."""
    connection: str | None = None
    api_base: str | None = None
    adapter: Literal["openai_compatible", "litellm"] | None = None
    """Who speaks to it; ``None`` is ours where the provider or ``api_base`` speaks OpenAI's protocol, else litellm."""
    price: Price | None = None
    billing: Literal["standard", "batch"] = "standard"
    """Which of litellm's prices are charged there. It changes no request: say ``batch`` of a place that bills so."""
    rpm: Annotated[int | Literal["unlimited"] | None, BeforeValidator(_requests)] = None
    tpm: int | None = Field(default=None, gt=0)
    """Input and output tokens per minute; ``None`` is unlimited."""
    input_tpm: int | None = Field(default=None, gt=0)
    output_tpm: int | None = Field(default=None, gt=0)
    concurrency: int = Field(default=32, gt=0, le=2000)
    """Requests under way at once, of all workers together."""
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """Part of every limit by team. Teams not listed have what is left, together."""
    breaker: Breaker = Breaker()
    timeout: Duration = Field(default=60, gt=0)
    """Seconds from sending a request to its answer."""
    timeout_max: Duration | None = Field(default=None, gt=0)
    """The same of the one request that follows a time-out; ``None`` is twice ``timeout``. Equal to ``timeout`` means
    that none follows."""
    context_tokens: int | None = Field(default=None, gt=0)
    """Input and output tokens that fit the model; ``None`` takes litellm's figure where it has one."""
    params: Params = Field(default_factory=dict)
    """Sent with every request (``temperature``, ``top_p``, …)."""
    surcharges: dict[str, Usd] = Field(default_factory=dict)
    """By parameter: the most USD that a request with it is charged on top of its tokens. Held and charged as a fee."""
    json_: bool | None = Field(default=None, alias="json")
    """Whether it answers by a schema; ``None`` is yes, unless litellm's map says no. So with ``tools``."""
    tools: bool | None = None
    image_tokens: int | None = Field(default=None, gt=0)
    """The most input tokens that one image is charged; ``None``: it takes none."""
    file_tokens: int | None = Field(default=None, gt=0)
    """The same of a file."""
    region: Annotated[str, AfterValidator(as_word), Field(min_length=1)] | None = None
    """Where it stands, in the policy's own words."""
    hosting: Literal["vendor", "self"] | None = None
    """Who runs it; ``None`` is a vendor, but for the offline model."""

    @field_validator("surcharges")
    @classmethod
    def _can_be_declared(cls, surcharges: dict[str, Decimal]) -> dict[str, Decimal]:
        if bad := sorted(filter(is_reserved, surcharges)):
            raise ValueError(f"{', '.join(bad)} cannot be set in params, whatever it costs")
        return surcharges

    @model_validator(mode="after")
    def _search_has_a_price(self) -> Self:
        searches = self.provider == "openrouter" and self.model.endswith(":online")
        if searches and not (self.price and self.price.per_request):
            raise ValueError("model: `:online` searches the web for a fee; take it off, or give price.per_request")
        return self

    def surcharge(self, params: Mapping[str, Any]) -> Decimal:
        """The most USD that a request with ``params`` is charged on top of its tokens."""
        charged = (usd for name, usd in self.surcharges.items() if name in params and not is_off(params[name]))
        return sum(charged, Decimal(0))

    @field_validator("shares")
    @classmethod
    def _no_more_than_all(cls, shares: dict[str, float]) -> dict[str, float]:
        if (total := math.fsum(shares.values())) > 1 + 1e-9:
            raise ValueError(f"the shares add up to {total:g}; expected at most 1")
        return shares

    @model_validator(mode="after")
    def _no_shorter_the_second_time(self) -> Self:
        if self.timeout_max is not None and self.timeout_max < self.timeout:
            raise ValueError(
                f"timeout_max {self.timeout_max} is below the timeout {self.timeout}; expected at least that"
            )
        return self

    @property
    def longest_timeout(self) -> int:
        """Seconds that any request to it may take."""
        return 2 * self.timeout if self.timeout_max is None else self.timeout_max

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]

    @property
    def self_hosted(self) -> bool:
        return self.hosting == "self" or (self.hosting is None and self.provider == "offline")

    @property
    def requests_per_minute(self) -> int | None:
        """``rpm``, or the default for a vendor; the offline model has no vendor to spare."""
        if self.rpm == "unlimited" or (self.rpm is None and self.provider == "offline"):
            return None
        return self.rpm or DEFAULT_RPM
