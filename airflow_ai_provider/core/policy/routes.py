"""Routes: how a row finds a tier, which deployments may have it, and what is asked of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from airflow_ai_provider.core.policy.fields import (
    TIERS,
    Duration,
    Language,
    Params,
    Seconds,
    Section,
    Tier,
    Words,
    as_word,
    as_words,
    listed,
    tellable,
)

_ATTACHMENT_PROTOCOLS = ("file", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "https", "http")


def _not_learned(value: Any) -> Any:
    if value == "learned":
        raise ValueError("learned routing is not there yet; expected 'column', 'rules' or 'constant'")
    return value


class Rule(Section):
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
    language: Annotated[tuple[Annotated[Language, BeforeValidator(tellable)], ...], BeforeValidator(listed)] = ()
    classification: Annotated[tuple[str, ...], BeforeValidator(as_words)] = ()
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


class Complexity(Section):
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


class Classification(Section):
    """How sensitive a row's data is, and what may leave for a vendor. What is not known to may not."""

    column: str = Field(min_length=1)
    default: Annotated[str, AfterValidator(as_word)] | None = None
    """Class of rows that say nothing; ``None`` keeps them on self-hosted deployments."""
    vendor: Annotated[tuple[str, ...], BeforeValidator(as_words)] = ()
    """Classes that any deployment may get."""
    self_hosted: Annotated[tuple[str, ...], BeforeValidator(as_words)] = ()
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


class TierOptions(Section):
    """What a tier asks with, in place of what its route says."""

    system_prompt: str | None = None
    max_tokens: int | None = Field(default=None, gt=0)
    params: Params = Field(default_factory=dict)
    """Added to the route's own, before which they go."""


class Escalate(Section):
    """What becomes of an answer that a check rejected."""

    on: tuple[Literal["schema", "grounding", "empty", "restore", "truncated", "filtered", "refused"], ...] = (
        "schema",
        "empty",
        "truncated",
    )
    """Checks that are made: the output schema, every number of the answer stands in the prompt, some text at all, every
    token of the answer can become a value. An answer that was cut, filtered or refused is always rejected; here it is
    said whether ``to`` is asked for it."""
    to: Tier | None = None
    """Tier that tries once more; ``None`` rejects at once."""
    then: Literal["review"] = "review"


class Reuse(Section):
    """Who may be answered from the response store, and for how long."""

    scope: Literal["run", "dag", "team", "off"] = "run"
    ttl: Duration = 86400


class Retry(Section):
    """How often one deployment is tried for a row, and how long to wait in between (seconds)."""

    attempts: int = Field(default=3, ge=1, le=10)
    wait: Seconds = 4.0
    max_wait: Seconds = 60.0


class Deadline(Section):
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


class Attachments(Section):
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


class Route(Section):
    """A way from rows to models."""

    tiers: dict[Tier, Annotated[tuple[Place, ...], BeforeValidator(_one_place)]]
    """Deployments in order of preference."""
    masking: str
    """Name of a masking profile, or ``off``: there is no default, so that personal data is never sent unawares."""
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
            names = names_of(places)
            if not names:
                raise ValueError(f"tier {tier} names no deployment")
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"tier {tier} names {twice[0]} twice; retry.attempts says how often one is asked")
        return tiers

    def names(self, tier: Tier) -> tuple[str, ...]:
        """A tier's deployments, in order of preference."""
        return names_of(self.tiers[tier])

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


def names_of(places: Sequence[Place]) -> tuple[str, ...]:
    return tuple(name for place in places for name in ([place] if isinstance(place, str) else place))
