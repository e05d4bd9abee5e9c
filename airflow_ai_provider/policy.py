"""policy.yaml: the one file a platform team writes, parsed and validated whole.

A policy that loads is complete and consistent: every name it uses is defined in it. Anything wrong is one
``PolicyError`` that lists every finding with file and line. YAML is read by a safe loader with YAML 1.2 booleans
(``off`` stays a word), and a key given twice is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.patterns import compile_pattern

Tier = Literal["simple", "medium", "complex"]
TIERS: tuple[Tier, ...] = ("simple", "medium", "complex")
EntityName = Literal[
    "standard",
    "all",
    "email",
    "phone",
    "card",
    "cn_id",
    "iban",
    "ip",
    "secret",
    "ssn",
    "passport",
    "driver_license",
    "bank_account",
    "cn_plate",
    "mac",
    "birth_date",
    "date",
    "url",
    "address",
]
TypeName = Annotated[str, Field(pattern=r"^[A-Z][A-Z_]{0,18}[A-Z]$")]
"""What a token says it stands for, such as ``PERSON``."""
NO_MASKING = "off"
DEFAULT_RPM = 1000
"""Requests per minute of a deployment for which the policy says nothing."""

RESERVED_PARAMS = frozenset(
    "model messages api_key api_base base_url max_tokens max_completion_tokens n stream max_retries num_retries "
    "timeout response_format extra_headers extra_body tools functions fallbacks context_window_fallback_dict "
    "mock_response service_tier web_search_options speed ssl_verify".split()
)
"""What the gateway sets itself, and what would make a call cost more than its hold or go where no policy sent it."""

_ATTACHMENT_PROTOCOLS = ("file", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "https", "http")
Language = Literal["zh", "ja", "ko", "el", "he", "th", "latin", "cyrillic", "arabic", "devanagari"]
"""What a text's letters tell: a language where it alone uses its script, else the script."""
_SHARED_SCRIPTS = {
    "latin": "en de fr es it pt nl pl cs sk hu ro sv da no fi tr vi id ms tl sw",
    "cyrillic": "ru uk be bg sr mk kk mn",
    "arabic": "ar fa ur ps",
    "devanagari": "hi mr ne",
}
_SCRIPT_OF = {code: script for script, codes in _SHARED_SCRIPTS.items() for code in codes.split()}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """Turn ``90``, ``"90s"``, ``"15m"``, ``"1h"`` or ``"7d"`` into seconds."""
    if isinstance(value, str) and value[-1:] in _UNITS and value[:-1].isdigit():
        return int(value[:-1]) * _UNITS[value[-1]]
    return value


def _decimal(value: Any) -> Any:
    """A YAML float is read by its shortest text, so that 0.1 means one tenth."""
    return Decimal(repr(value)) if isinstance(value, float) else value


def _listed(value: Any) -> Any:
    """One name may stand without the brackets of a list."""
    return (value,) if isinstance(value, str) else value


def _no_reserved_params(params: dict[str, Any]) -> dict[str, Any]:
    if bad := sorted(RESERVED_PARAMS & params.keys()):
        raise ValueError(f"{', '.join(bad)} cannot be set here: the gateway sets it, or it would cost unforeseen")
    return params


def as_word(value: Any) -> str:
    """A value of a row or of the policy as it is compared: as text, in lower case, without blanks around it."""
    return str(value).strip().lower()


def _words(value: Any) -> Any:
    """Plain values as words; one needs no list."""
    values = value if isinstance(value, list | tuple) else [value]
    if any(one is None or isinstance(one, list | dict) for one in values):
        raise ValueError("expected a value, or a list of values")
    return tuple(map(as_word, values))


def _tellable(language: Any) -> Any:
    if script := _SCRIPT_OF.get(language) if isinstance(language, str) else None:
        raise ValueError(f"letters do not tell {language!r} from other languages of its script; write {script}")
    return language


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_words), Field(min_length=1)]
Params = Annotated[dict[str, Any], AfterValidator(_no_reserved_params)]


def _requests(value: Any) -> Any:
    if value is None or value == "unlimited" or (type(value) is int and value > 0):
        return value
    raise ValueError("expected a number of requests above 0, or unlimited")


Duration = Annotated[int, BeforeValidator(_seconds), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=3600)]
Usd = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, max_digits=19, decimal_places=9)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PriceAbove(_Section):
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


class Price(_Section):
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


class Breaker(_Section):
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


class Deployment(_Section):
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
    context_tokens: int | None = Field(default=None, gt=0)
    """Input and output tokens that fit the model; ``None`` takes litellm's figure where it has one."""
    params: Params = Field(default_factory=dict)
    """Sent with every request (``temperature``, ``top_p``, …)."""
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

    @field_validator("shares")
    @classmethod
    def _no_more_than_all(cls, shares: dict[str, float]) -> dict[str, float]:
        if (total := math.fsum(shares.values())) > 1 + 1e-9:
            raise ValueError(f"the shares add up to {total:g}; expected at most 1")
        return shares

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


def _not_learned(value: Any) -> Any:
    if value == "learned":
        raise ValueError("learned routing is not there yet; expected 'column', 'rules' or 'constant'")
    return value


class Rule(_Section):
    """Rows that meet all the conditions take the tier."""

    tier: Tier
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9 _.-]{0,29}$")] | None = None
    """Recorded with the rows it routes; ``None`` takes the names of its conditions."""
    over_tokens: int | None = Field(default=None, ge=0)
    """By the rule of thumb: four bytes a token, three outside ASCII."""
    over_bytes: int | None = Field(default=None, ge=0)
    images: bool | None = None
    files: bool | None = None
    tools: bool | None = None
    schema_: bool | None = Field(default=None, alias="schema")
    language: Annotated[tuple[Annotated[Language, BeforeValidator(_tellable)], ...], BeforeValidator(_listed)] = ()
    classification: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    columns: dict[str, Words] = Field(default_factory=dict)
    """Values of columns, compared as words."""

    @property
    def conditions(self) -> dict[str, Any]:
        """By their names in the policy, in the order of the fields."""
        given = {field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items()}
        return {k: v for k, v in given.items() if k not in ("tier", "name") and v is not None and v not in ((), {})}

    def covers(self, other: Rule) -> bool:
        """Whether every row that meets ``other`` meets this rule as well, as far as the conditions tell."""
        theirs = other.conditions
        return all(name in theirs and _implied(value, theirs[name]) for name, value in self.conditions.items())


def _implied(mine: Any, theirs: Any) -> bool:
    """Whether a condition follows from a stricter one of the same name."""
    match mine:
        case bool():
            return bool(mine == theirs)
        case int():
            return bool(mine <= theirs)
        case dict():
            return all(column in theirs and {*theirs[column]} <= {*values} for column, values in mine.items())
        case _:
            return {*theirs} <= {*mine}


class Complexity(_Section):
    """How a row's tier is found."""

    from_: Annotated[Literal["column", "rules", "constant"], BeforeValidator(_not_learned)] = Field(
        default="constant", alias="from"
    )
    column: str = "difficulty"
    default: Tier | None = None
    """Tier of rows that say nothing; ``None`` takes the lowest the route has."""
    rules: tuple[Rule, ...] = Field(default=(), max_length=200)
    """The first that a row meets gives its tier."""
    keywords: dict[Tier, Annotated[Words, Field(max_length=500)]] = Field(default_factory=dict)
    """Words of a prompt by the tier they speak for, for rows that meet no rule."""

    @model_validator(mode="after")
    def _rules_where_they_are_asked(self) -> Self:
        given = bool(self.rules or self.keywords)
        if self.from_ == "rules" and not given:
            raise ValueError("expected rules, for example [{over_tokens: 4000, tier: complex}]")
        if self.from_ != "rules" and given:
            raise ValueError("rules and keywords are read with from: rules only")
        return self


class Classification(_Section):
    """How sensitive a row's data is, and what may leave for a vendor. What is not known to may not."""

    column: str = Field(min_length=1)
    default: Annotated[str, AfterValidator(as_word)] | None = None
    """Class of rows that say nothing; ``None`` keeps them on self-hosted deployments."""
    vendor: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Classes that any deployment may get."""
    self_hosted: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Classes that self-hosted deployments alone may get, as may whatever is in neither list."""

    @property
    def known(self) -> tuple[str, ...]:
        return self.vendor + self.self_hosted

    @model_validator(mode="after")
    def _sorted_out(self) -> Self:
        if not self.known:
            raise ValueError("names no class; write, for example, vendor: [public, internal]")
        if both := sorted({*self.vendor} & {*self.self_hosted}):
            raise ValueError(f"class {both[0]!r} stands under vendor and under self_hosted; take it out of one")
        if self.default is not None and self.default not in self.known:
            raise ValueError(f"the default {self.default!r} stands neither under vendor nor under self_hosted")
        return self


class TierOptions(_Section):
    """What a tier asks with, in place of what its route says."""

    system_prompt: str | None = None
    max_tokens: int | None = Field(default=None, gt=0)
    params: Params = Field(default_factory=dict)
    """Added to the route's own, before which they go."""


class Escalate(_Section):
    """What becomes of an answer that a check rejected."""

    on: tuple[Literal["schema", "grounding", "empty", "restore"], ...] = ("schema", "empty")
    """Checks that are made: the output schema, every number of the answer stands in the prompt, some text at all, every
    token of the answer can become a value."""
    to: Tier | None = None
    """Tier that tries once more; ``None`` rejects at once."""
    then: Literal["review"] = "review"


class Reuse(_Section):
    """Who may be answered from the response store, and for how long."""

    scope: Literal["run", "dag", "team", "off"] = "run"
    ttl: Duration = 86400


class Retry(_Section):
    """How often one deployment is tried for a row, and how long to wait in between (seconds)."""

    attempts: int = Field(default=3, ge=1, le=10)
    wait: Seconds = 4.0
    max_wait: Seconds = 60.0


class Deadline(_Section):
    """Until when a row is tried; ``None`` is as long as it takes."""

    row: Annotated[Duration, Field(gt=0)] | None = None
    """From the row's first request on."""
    batch: Annotated[Duration, Field(gt=0)] | None = None
    """From the beginning of the row's batch on, whatever it waits for."""


def _usable_place(place: str) -> str:
    """Raises ``ValueError`` for a place of attachments that could mean more than it says."""
    protocol, separator, rest = place.partition("://")
    if not separator:
        protocol, rest = "file", place
    if protocol not in _ATTACHMENT_PROTOCOLS:
        raise ValueError(f"{protocol}:// cannot be used; expected one of {', '.join(_ATTACHMENT_PROTOCOLS)}")
    if not rest.strip("/") or rest.startswith("/") != (protocol == "file"):
        raise ValueError("expected an absolute folder such as /data/scans, or s3://bucket/folder, or https://host/path")
    web = protocol in ("http", "https")
    if {*"?#*%\\", *("@" if web else "")} & set(place) or {".", ".."} & set(rest.split("/")):
        raise ValueError("expected a plain folder: no pattern, query, user name or dots")
    return place.rstrip("/")


class Attachments(_Section):
    """Images and files that a route lets out: nothing in them can be masked."""

    kinds: Annotated[tuple[Literal["image", "file"], ...], Field(min_length=1)]
    from_: Annotated[tuple[Annotated[str, AfterValidator(_usable_place)], ...], Field(min_length=1, alias="from")]
    """Folders, of this machine or of an object store, that they may be read from; and web addresses whose images are
    passed on to the vendor as they are."""
    max_mb: int = Field(default=20, gt=0, le=100)
    """Megabytes of one."""


def _name_or_split(value: Any) -> Any:
    if isinstance(value, str):
        return value
    weights = list(value.values()) if isinstance(value, dict) else []
    if len(weights) < 2 or not all(type(weight) is int and 0 <= weight <= 1_000_000 for weight in weights):
        raise ValueError("expected a deployment, or several with their weights, for example {small: 90, trial: 10}")
    if not any(weights):
        raise ValueError("no weight is above 0")
    return value


Place = Annotated[str | dict[str, int], BeforeValidator(_name_or_split)]
"""A deployment, or several that share the rows by weight. A weight of 0 gets rows only where the others fail."""


def _one_place(value: Any) -> Any:
    return (value,) if isinstance(value, str | dict) else value


class Route(_Section):
    """A way from rows to models."""

    tiers: dict[Tier, Annotated[tuple[Place, ...], BeforeValidator(_one_place)]]
    """Deployments in order of preference."""
    masking: str
    """Name of a masking profile, or ``off``: there is no default, so that nobody sends personal data unawares."""
    complexity: Complexity = Complexity()
    escalate: Escalate = Escalate()
    reuse: Reuse = Reuse()
    retry: Retry = Retry()
    deadline: Deadline = Deadline()
    max_tokens: int = Field(default=512, gt=0)
    system_prompt: str | None = None
    attachments: Attachments | None = None
    """What may leave unmasked as an image or a file; ``None`` is nothing."""
    params: Params = Field(default_factory=dict)
    """Sent with every request of the route; they go before the deployment's."""
    tier_options: dict[Tier, TierOptions] = Field(default_factory=dict)
    classification: Classification | None = None
    regions: Words | None = None
    """Regions whose deployments alone may be asked; ``None`` is anywhere."""
    over_budget: Literal["stop", "cheaper", "wait"] = "stop"
    """What becomes of rows for which a budget has no room: nothing, a lower tier that fits, or waiting for room."""

    @field_validator("tiers")
    @classmethod
    def _some_tier(cls, tiers: dict[Tier, tuple[Place, ...]]) -> dict[Tier, tuple[Place, ...]]:
        if not tiers:
            raise ValueError("expected at least one tier, for example {simple: [small]}")
        for tier, places in tiers.items():
            names = _names(places)
            if not names:
                raise ValueError(f"tier {tier} names no deployment")
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"tier {tier} names {twice[0]} twice; retry.attempts says how often one is asked")
        return tiers

    def names(self, tier: Tier) -> tuple[str, ...]:
        """A tier's deployments, in order of preference."""
        return _names(self.tiers[tier])

    @property
    def deployments(self) -> tuple[str, ...]:
        """Of all tiers, each once."""
        return tuple(dict.fromkeys(name for tier in self.tiers for name in self.names(tier)))

    @property
    def needed_columns(self) -> dict[str, str]:
        """Columns that rows must have, by the key that names them: without them a rule or a class says nothing."""
        named = {column: "complexity.rules" for rule in self.complexity.rules for column in rule.columns}
        return named | ({self.classification.column: "classification.column"} if self.classification else {})

    @property
    def shares_nothing(self) -> bool:
        """Whether each row's answer is its own."""
        return self.reuse.scope == "off" or self.reuse.ttl == 0

    @property
    def default_tier(self) -> Tier:
        if self.complexity.default is not None:
            return self.complexity.default
        return next(tier for tier in TIERS if tier in self.tiers)

    def tier_below(self, tier: Tier) -> Tier | None:
        """The next cheaper tier the route has."""
        below = [name for name in TIERS[: TIERS.index(tier)] if name in self.tiers]
        return below[-1] if below else None

    def tier_at_least(self, tier: Tier) -> Tier:
        """The tier asked for or, where the route lacks it, the next one up, else the highest it has."""
        above = [name for name in TIERS[TIERS.index(tier) :] if name in self.tiers]
        return above[0] if above else [name for name in TIERS if name in self.tiers][-1]


def _names(places: Sequence[Place]) -> tuple[str, ...]:
    return tuple(name for place in places for name in ([place] if isinstance(place, str) else place))


class Budget(_Section):
    """A hard limit on what a scope may spend in a period. No scope at all is the whole organisation."""

    limit_usd: Annotated[Usd, Field(le=9_000_000_000)]
    period: Literal["day", "week", "month", "run", "total"]
    team: str | None = None
    dag: str | None = None
    route: str | None = None
    timezone: str = "UTC"
    thresholds: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (50, 80, 100)
    """Percent of the limit at which somebody is told, once each."""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{name!r} is no time zone; expected a name such as Europe/Berlin") from None
        return name

    @property
    def name(self) -> str:
        """Identifies the budget in the ledger: its scope, period and time zone, not its limit."""
        scope = [f"{k}={v}" for k, v in (("team", self.team), ("dag", self.dag), ("route", self.route)) if v]
        zone = "" if self.timezone == "UTC" else f"[{self.timezone}]"
        return f"{'&'.join(scope) or 'organisation'}/{self.period}{zone}"

    def applies(self, *, team: str, dag: str, route: str) -> bool:
        wanted = ((self.team, team), (self.dag, dag), (self.route, route))
        return all(mine is None or mine == theirs for mine, theirs in wanted)


def _usable(pattern: str) -> str:
    """Raises ``ValueError`` that says why a user's pattern cannot be used."""
    compile_pattern(pattern)
    return pattern


def _usable_entry(entry: str) -> str:
    if len(entry) > 2 and entry[0] == entry[-1] == "/":
        _usable(entry[1:-1])
    if not entry.strip():
        raise ValueError("expected a value, or a pattern between slashes")
    return entry


class MaskingProfile(_Section):
    """What is masked: kinds of values found anywhere, and columns whose value is masked wherever it stands."""

    detect: Annotated[tuple[EntityName, ...], BeforeValidator(_listed)] = ()
    columns: dict[str, TypeName] = Field(default_factory=dict)
    confidence: Literal["validated", "context"] = "context"
    """``context`` also takes what fails its check but stands next to a word that names it."""
    patterns: dict[TypeName, Annotated[str, AfterValidator(_usable)]] = Field(default_factory=dict, max_length=50)
    allow: tuple[Annotated[str, AfterValidator(_usable_entry)], ...] = Field(default=(), max_length=1000)
    skip: tuple[str, ...] = ()
    names: Annotated[str, Field(pattern=r"^(?:presidio|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.detect or self.columns or self.patterns or self.names):
            raise ValueError("masks nothing: name kinds under detect or columns, or set the route's masking to off")
        if both := sorted(self.columns.keys() & set(self.skip)):
            raise ValueError(f"column {both[0]!r} stands under columns and under skip; take it out of one")
        return self


class Grant(_Section):
    """Who may: the tasks of one DAG, on behalf of one team."""

    dag: str = Field(min_length=1)
    team: str = Field(min_length=1)
    columns: tuple[str, ...] | None = None
    """``None`` is every column."""

    def covers(self, columns: Sequence[str] | None) -> bool:
        return self.columns is None or (columns is not None and {*columns} <= {*self.columns})


class Privacy(_Section):
    """Who may see personal values again. Nobody, unless it is written here."""

    restore: tuple[Grant, ...] = ()
    """Who may put values back in place of the tokens of a masked table."""
    decrypt: tuple[Grant, ...] = ()
    """Who may decrypt columns."""


class LedgerRules(_Section):
    """How long the ledger keeps what."""

    keep_months: int | None = Field(default=None, ge=1, le=1200)
    """Full months of ``llm_requests`` kept before the present one; ``None`` keeps all. The rollup stays for ever."""


class Policy(_Section):
    """The whole of policy.yaml."""

    version: Literal[1]
    deployments: dict[str, Deployment] = Field(min_length=1)
    routes: dict[str, Route] = Field(min_length=1)
    budgets: tuple[Budget, ...]
    masking: dict[str, MaskingProfile] = Field(default_factory=dict)
    privacy: Privacy = Privacy()
    ledger: LedgerRules = LedgerRules()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the policy's meaning, recorded in the audit trail."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def route(self, name: str) -> Route:
        if name not in self.routes:
            raise PolicyError(f"route {name!r} is not in the policy; it has: {', '.join(sorted(self.routes))}")
        return self.routes[name]

    def budgets_for(
        self, *, team: str, dag: str, route: str, in_force: Sequence[Budget] | None = None
    ) -> tuple[Budget, ...]:
        """Every budget a call must fit, of the policy's own or of those ``in_force``.

        Raises ``PolicyError`` where there is none: no limit, no call.
        """
        budgets = self.budgets if in_force is None else in_force
        found = tuple(b for b in budgets if b.applies(team=team, dag=dag, route=route))
        if not found:
            raise PolicyError(
                f"no budget applies to team {team!r} (dag {dag!r}, route {route!r}); "
                f"add one under budgets, for example {{team: {team}, period: day, limit_usd: 10}}"
            )
        return found

    def require_grant(
        self, act: Literal["restore", "decrypt"], *, dag: str, team: str, columns: Sequence[str] | None
    ) -> None:
        """Raises ``PolicyError`` unless one grant covers all of it; ``columns`` of ``None`` are all there are."""
        grants: tuple[Grant, ...] = getattr(self.privacy, act)
        if any((grant.dag, grant.team) == (dag, team) and grant.covers(columns) for grant in grants):
            return
        listed = f", columns: [{', '.join(columns)}]" if columns else ""
        raise PolicyError(
            f"DAG {dag!r} has no permission to {act} for team {team!r}; whoever answers for the data may add to the "
            f"policy, under privacy: {act}: [{{dag: {dag}, team: {team}{listed}}}]"
        )

    def profile(self, name: str) -> MaskingProfile:
        if name not in self.masking:
            known = ", ".join(sorted(self.masking)) or "none"
            raise PolicyError(f"masking profile {name!r} is not in the policy; it has: {known}")
        return self.masking[name]


def parse_budget(values: Mapping[str, Any]) -> Budget:
    """A budget from plain values. Raises ``PolicyError`` that names what is wrong with it."""
    try:
        return Budget.model_validate(values)
    except ValidationError as error:
        findings = (f"{_place(item['loc'])}: {_explain(item)}" for item in error.errors(include_url=False))
        raise PolicyError(f"budget: {'; '.join(findings)}") from None


def load_policy(path: Path) -> Policy:
    """Read and validate a policy. Raises ``PolicyError`` that lists every finding as ``file:line: …``."""
    text = read_document(path, "no policy file there; set [ai] policy_path to your policy.yaml")
    return parse_policy(text, str(path))


def read_document(path: Path, absent: str) -> str:
    """The text of a YAML file. Raises ``PolicyError``, with ``absent`` where there is no file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PolicyError(f"{path}: {absent}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read ({error.__class__.__name__}); expected UTF-8 YAML") from None


def parse_policy(text: str, name: str = "policy.yaml") -> Policy:
    """Validate the text of a policy; ``name`` is what errors call the file."""
    return parse_document(text, name, Policy, "version, deployments, routes and budgets", _inconsistencies)


_Document = TypeVar("_Document", bound=BaseModel)
_Inconsistencies = Iterator[tuple[tuple[str | int, ...], str]]


def parse_document(
    text: str,
    name: str,
    model: type[_Document],
    keys: str,
    inconsistencies: Callable[[_Document], _Inconsistencies] = lambda _: iter(()),
) -> _Document:
    """Validate YAML (or JSON, which is YAML) as ``model``; ``keys`` says what the file should hold.

    Raises ``PolicyError`` that lists every finding as ``name:line: place: problem``.
    """
    root, data = _read(text, name, keys)
    try:
        document = model.model_validate(data)
    except ValidationError as error:
        findings = [(_line(root, item["loc"]), _place(item["loc"]), _explain(item)) for item in error.errors()]
    else:
        findings = [(_line(root, loc), _place(loc), problem) for loc, problem in inconsistencies(document)]
        if not findings:
            return document
    lines = [f"{name}:{line}: {place}: {problem}" for line, place, problem in sorted(findings)]
    raise PolicyError("\n".join(lines))


def _read(text: str, name: str, keys: str) -> tuple[yaml.Node, dict[Any, Any]]:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            data = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PolicyError(f"{name}:{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise PolicyError(f"{name}: not YAML: {str(error).splitlines()[0]}") from None
    except (
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:  # a date, number or anchor that YAML's types refuse
        raise PolicyError(f"{name}: a value cannot be read ({type(error).__name__}); put text in quotes") from None
    if root is None or not isinstance(data, dict):
        raise PolicyError(f"{name}:1: expected a mapping with {keys}")
    return root, data


def _inconsistencies(policy: Policy) -> _Inconsistencies:
    """Names that are used and not defined, as (place, problem)."""
    known = ", ".join(sorted(policy.deployments))
    for route_name, route in policy.routes.items():
        for tier, places in route.tiers.items():
            for index, place in enumerate(places):
                for name in _names([place]):
                    if name not in policy.deployments:
                        where = ("routes", route_name, "tiers", tier, index)
                        yield where, f"no deployment {name!r}; there are: {known}"
        if route.masking != NO_MASKING and route.masking not in policy.masking:
            profiles = ", ".join(sorted(policy.masking)) or "none"
            yield (
                ("routes", route_name, "masking"),
                f"no masking profile {route.masking!r}; there are: {profiles} (or write off)",
            )
        for place, tier_name in (("complexity", route.complexity.default), ("escalate", route.escalate.to)):
            if tier_name and tier_name not in route.tiers:
                yield ("routes", route_name, place), f"the route has no tier {tier_name!r}"
        yield from ((("routes", route_name, *loc), problem) for loc, problem in _misrouted(policy, route))
    seen: set[str] = set()
    for index, budget in enumerate(policy.budgets):
        if budget.route and budget.route not in policy.routes:
            yield ("budgets", index, "route"), f"no route {budget.route!r}"
        if budget.name in seen:
            yield ("budgets", index), f"a second budget {budget.name}; keep one limit per scope and period"
        seen.add(budget.name)


def _misrouted(policy: Policy, route: Route) -> _Inconsistencies:
    """What a route's rules and limits leave without effect, or without a deployment."""
    rules, keywords = route.complexity.rules, route.complexity.keywords
    asked: list[tuple[tuple[str | int, ...], Tier]] = [
        *((("complexity", "rules", number, "tier"), rule.tier) for number, rule in enumerate(rules)),
        *((("complexity", "keywords", tier), tier) for tier in keywords),
        *((("tier_options", tier), tier) for tier in route.tier_options),
    ]
    yield from ((loc, f"the route has no tier {tier!r}") for loc, tier in asked if tier not in route.tiers)
    for number, rule in enumerate(rules):
        earlier = next((index for index in range(number) if rules[index].covers(rule)), None)
        if earlier is not None:
            yield ("complexity", "rules", number), f"never reached: rules.{earlier} takes all of its rows before it"
        known = route.classification.known if route.classification else ()
        for name in rule.classification:
            if name not in known:
                problem = f"no class {name!r}; the route's classification has: {', '.join(known) or 'none'}"
                yield ("complexity", "rules", number, "classification"), problem
    if keywords and any(not rule.conditions for rule in rules):
        yield ("complexity", "keywords"), "never reached: a rule without conditions takes every row"
    for tier in route.tiers if route.regions else ():
        named = {name: policy.deployments.get(name) for name in route.names(tier)}
        if not any(found is None or found.region in (route.regions or ()) for found in named.values()):
            regions = ", ".join(f"{name} ({found.region or 'no region'})" for name, found in named.items() if found)
            yield ("regions",), f"tier {tier} has no deployment there: {regions}"


class _Loader(yaml.SafeLoader):
    """Safe YAML with YAML 1.2 booleans and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _line(node: yaml.Node, loc: tuple[str | int, ...]) -> int:
    """Line of the innermost place along ``loc`` that stands in the file; the key's line for a mapping entry."""
    line = node.start_mark.line + 1
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            match = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if match is None:
                continue
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line


def _place(loc: tuple[str | int, ...]) -> str:
    return ".".join(str(step) for step in loc) or "policy"


def _explain(item: Mapping[str, Any]) -> str:
    """A finding of pydantic in our words, without the value (it might be a secret in the wrong place)."""
    match item["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "required, and not there"
        case "value_error":
            return str(item["ctx"]["error"])
        case _:
            return str(item["msg"]).removeprefix("Input should be ").join(("expected ", ""))
