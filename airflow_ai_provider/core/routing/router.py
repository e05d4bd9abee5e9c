"""Which tier a row takes, and which deployments of it may have the row. Pure: no I/O, no clock, no randomness.

The tier is a preference: a column says it, rules do, or it is the same for all. What a deployment can take is a hard
limit: it is checked in every tier that a row comes to, so that classified data is not sent to a vendor when a row falls
back or escalates. Whatever does not depend on the row is worked out once.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

import re2

from airflow_ai_provider.core.errors import RoutingError
from airflow_ai_provider.core.job import Row
from airflow_ai_provider.core.ledger.prices import ModelFacts
from airflow_ai_provider.core.policy import TIERS, Deployment, Language, Place, Route, Rule, Tier, as_word
from airflow_ai_provider.core.prompts.text import MOST_BYTES_PER_TOKEN, languages, more_tokens_than

UNKNOWN_CLASS = "(unknown)"
"""The class of a row that says something the policy does not know, or cannot say anything. No class can be so named."""
Limit = Literal["region", "self_hosted", "images", "files", "json", "tools", "context_window"]
"""Why a deployment cannot take a row."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a row's request asks of a deployment."""

    size: int
    """UTF-8 bytes of the masked prompt."""
    images: int = 0
    files: int = 0
    json: bool = False
    """An answer by a schema."""
    tools: bool = False
    classification: str | None = None
    """What ``Router.classify`` says. ``None`` counts as unknown where the route classifies its rows."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a row goes first."""

    tier: Tier
    routed_by: str
    """``column``, ``constant``, ``default``, ``rules:`` and the rule's name; at most 40 characters."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What one tier of a job asks with."""

    max_tokens: int
    system_prompt: str | None
    params: Mapping[str, Any]
    """They go before the deployment's."""


class Candidate(Protocol):
    """What has to be known of a deployment; ``lanes.Offer`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def deployment(self) -> Deployment: ...
    @property
    def facts(self) -> ModelFacts: ...


def terms_of(route: Route, tier: Tier, *, max_tokens: int | None = None, system_prompt: str | None = None) -> Terms:
    """A tier's terms: what the job says goes before what the tier says, and that before the route."""
    options = route.tier_options.get(tier)
    return Terms(
        max_tokens=max_tokens or (options and options.max_tokens) or route.max_tokens,
        system_prompt=system_prompt or (options and options.system_prompt) or route.system_prompt,
        params={**route.params, **(options.params if options else {})},
    )


def attachment_tokens(deployment: Deployment, needs: Needs) -> int:
    """The most input tokens that a row's images and files are charged at a deployment that takes them."""
    return needs.images * (deployment.image_tokens or 0) + needs.files * (deployment.file_tokens or 0)


class Router:
    """Routes the rows of one job."""

    def __init__(self, name: str, route: Route, tiers: Mapping[Tier, Sequence[Candidate]]) -> None:
        """``name`` is the route's; ``tiers`` are the deployments that ``route.names`` lists, with what is known."""
        self._route = route
        self._known = {candidate.name: candidate for found in tiers.values() for candidate in found}
        self._column, self._default = route.complexity.column, route.default_tier
        self._by_word: dict[str, Choice] = {tier: Choice(route.tier_at_least(tier), "column") for tier in TIERS}
        self._otherwise = Choice(self._default, "default")
        self._constant = Choice(self._default, "constant")
        self._rules = [_compiled(rule) for rule in route.complexity.rules]
        self._keywords = _Keywords(route.complexity.keywords) if route.complexity.keywords else None
        self._choose: Callable[[Row, str, Needs], Choice] = {
            "column": self._by_column,
            "rules": self._by_rules,
            "constant": lambda row, text, needs: self._constant,
        }[route.complexity.from_]
        self._splits = {tier: _splits(name, tier, places) for tier, places in route.tiers.items()}
        self._sizes = sorted({limit for found in self._known.values() if (limit := _most_bytes(found)) is not None})
        self._ways: dict[tuple[object, ...], _Ways] = {}
        self._stands_for: dict[tuple[Tier, tuple[str, ...]], tuple[str | None, ...]] = {}
        classes = route.classification
        self._anywhere: frozenset[str] | None = frozenset(classes.vendor) if classes else None

    def choose(self, row: Row, text: str, needs: Needs) -> Choice:
        """The tier of a row, from the row, its masked text and its needs."""
        return self._choose(row, text, needs)

    def classify(self, row: Row) -> str | None:
        """The class of a row's data, one of the policy's own names or ``UNKNOWN_CLASS``; ``None`` without classes."""
        classes = self._route.classification
        if classes is None:
            return None
        if classes.column not in row:
            return UNKNOWN_CLASS
        value = row[classes.column]
        word = as_word(value) if value is not None else ""
        found = word or classes.default
        return found if found in classes.known else UNKNOWN_CLASS

    def order(self, tier: Tier, needs: Needs, row_key: str) -> tuple[str, ...]:
        """The deployments of a tier that can take a row, in the order in which they are asked.

        Where weights share a place, the row's key decides which of them is asked first: the same in every process and
        on every try; the others follow as fallbacks. Raises ``RoutingError`` where none can take it.
        """
        level = bisect_left(self._sizes, needs.size)  # two sizes between the same limits fit the same deployments
        restricted = self._anywhere is not None and needs.classification not in self._anywhere
        signature = (tier, level, needs.images > 0, needs.files > 0, needs.json, needs.tools, restricted)
        ways = self._ways.get(signature)
        if ways is None:
            ways = self._ways[signature] = self._made(tier, needs, restricted=restricted)
        if ways.only is not None:
            return ways.only
        if ways.excluded is not None:
            raise self._refusal(tier, ways.excluded, needs)
        return ways.of(row_key)

    def stands_for(self, tier: Tier, order: tuple[str, ...]) -> tuple[str | None, ...]:
        """For each of ``order``, the deployment of its split that was picked, where it is another one.

        An answer given in another's place is kept for rows of that other alone: the arms of a trial share none.
        """
        found = self._stands_for.get((tier, order))
        if found is None:
            found = self._stands_for[tier, order] = _places_taken(order, self._splits[tier])
        return found

    def _by_column(self, row: Row, text: str, needs: Needs) -> Choice:
        wanted = row.get(self._column)
        if wanted is None:
            return self._otherwise
        found = self._by_word.get(wanted) if type(wanted) is str else None
        return found or self._by_word.get(as_word(wanted), self._otherwise)

    def _by_rules(self, row: Row, text: str, needs: Needs) -> Choice:
        seen = _Seen(row, text, needs)
        for choice, conditions in self._rules:
            for condition in conditions:
                if not condition(seen):
                    break
            else:
                return choice
        return (self._keywords and self._keywords.choice(text)) or self._otherwise

    def _made(self, tier: Tier, needs: Needs, *, restricted: bool) -> _Ways:
        excluded: dict[str, Limit] = {}
        for name in self._route.names(tier):
            if limit := self._limit(self._known[name], needs, restricted=restricted):
                excluded[name] = limit
        fitting = [name for name in self._route.names(tier) if name not in excluded]
        return _Ways(fitting, self._splits[tier], excluded)

    def _limit(self, found: Candidate, needs: Needs, *, restricted: bool) -> Limit | None:
        """The first thing that keeps a row from a deployment."""
        deployment, facts, most = found.deployment, found.facts, _most_bytes(found)
        checks: tuple[tuple[Limit, bool], ...] = (
            ("region", self._route.regions is not None and deployment.region not in self._route.regions),
            ("self_hosted", restricted and not deployment.self_hosted),
            ("images", needs.images > 0 and deployment.image_tokens is None),
            ("files", needs.files > 0 and deployment.file_tokens is None),
            ("json", needs.json and not facts.json),
            ("tools", needs.tools and not facts.tools),
            ("context_window", most is not None and needs.size > most),
        )
        return next((limit for limit, broken in checks if broken), None)

    def _refusal(self, tier: Tier, excluded: Mapping[str, Limit], needs: Needs) -> RoutingError:
        """Of the policy's names and the row's needs; nothing of the row itself."""
        limits = set(excluded.values())
        reason = limits.pop() if len(limits) == 1 else "no_deployment"
        listed = ", ".join(f"{name} ({self._why(name, limit, needs)})" for name, limit in excluded.items())
        remedies = dict.fromkeys(_REMEDIES[limit] for limit in excluded.values())
        return RoutingError(
            f"no deployment of tier {tier} can take the row: {listed}; {'; or '.join(remedies)}", reason=reason
        )

    def _why(self, name: str, limit: Limit, needs: Needs) -> str:
        deployment, facts = self._known[name].deployment, self._known[name].facts
        match limit:
            case "region":
                return f"region {deployment.region or 'not given'}, not {' or '.join(self._route.regions or ())}"
            case "self_hosted":
                data = "of an unknown class" if needs.classification in (None, UNKNOWN_CLASS) else needs.classification
                return f"a vendor's, and the data is {data}"
            case "context_window":
                return f"takes {facts.context_tokens} tokens, and the row needs more"
            case "json":
                return "answers by no schema"
            case "images" | "files" | "tools":
                return f"takes no {limit}"


_REMEDIES: Mapping[Limit, str] = {
    "region": "add a deployment in that region to the tier",
    "self_hosted": "add one with hosting: self to the tier, or put the class under classification.vendor",
    "images": "say what an image costs at most with image_tokens, where a model takes them",
    "files": "say what a file costs at most with file_tokens, where a model takes them",
    "json": "write json: true at a deployment that answers by schemas",
    "tools": "write tools: true at a deployment that takes them",
    "context_window": "split the text, or add a deployment with a larger context",
}


def _most_bytes(found: Candidate) -> int | None:
    """What is longer cannot fit a deployment's context whatever its tokenizer does; ``None`` if unknown."""
    return found.facts.context_tokens * MOST_BYTES_PER_TOKEN if found.facts.context_tokens else None


class _Split:
    """A place of a tier that deployments share by weight."""

    def __init__(self, seed: bytes, weights: Mapping[str, int]) -> None:
        self.weights = weights
        self._hash = hashlib.blake2b(seed, digest_size=8)

    def number(self, row_key: str) -> int:
        """The row's own 64 bits: even over keys, and the same in every process."""
        digest = self._hash.copy()
        digest.update(row_key.encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest())


def _splits(route: str, tier: Tier, places: Sequence[Place]) -> list[_Split]:
    weights = [place for place in places if not isinstance(place, str)]
    return [_Split(f"{tier}/{number}/{route}/".encode(), shares) for number, shares in enumerate(weights)]


def _places_taken(order: Sequence[str], splits: Sequence[_Split]) -> tuple[str | None, ...]:
    picked: dict[str, str] = {}
    for split in splits:
        arms = [name for name in order if name in split.weights]
        picked |= dict.fromkeys(arms[1:], arms[0])
    return tuple(picked.get(name) for name in order)


class _Ways:
    """The orders in which the deployments that fit some needs can be asked."""

    def __init__(self, fitting: Sequence[str], splits: Sequence[_Split], excluded: Mapping[str, Limit]) -> None:
        self.excluded = None if fitting else excluded
        self._fitting = fitting
        self._splits = [
            (split, arms, list(accumulate(split.weights[name] for name in arms)))
            for split in splits
            if len(arms := [name for name in split.weights if name in fitting]) > 1
            and any(split.weights[name] for name in arms)
        ]
        self.only = tuple(fitting) if fitting and not self._splits else None
        """The order of every row, where no weight decides."""
        self._orders: dict[tuple[int, ...], tuple[str, ...]] = {}

    def of(self, row_key: str) -> tuple[str, ...]:
        picks = tuple(bisect_right(sums, split.number(row_key) * sums[-1] >> 64) for split, _, sums in self._splits)
        order = self._orders.get(picks)
        if order is None:
            order = self._orders[picks] = self._with(picks)
        return order

    def _with(self, picks: Sequence[int]) -> tuple[str, ...]:
        """The picked of each split first, then its others by weight; all else stays where it is."""
        order = list(self._fitting)
        for pick, (split, arms, _) in zip(picks, self._splits, strict=True):
            start = order.index(arms[0])
            others = sorted((name for name in arms if name != arms[pick]), key=lambda name: -split.weights[name])
            order[start : start + len(arms)] = [arms[pick], *others]
        return tuple(order)


class _Seen:
    """A row as rules see it; expensive facts are computed once, and only if asked for."""

    __slots__ = ("_languages", "needs", "row", "text")

    def __init__(self, row: Row, text: str, needs: Needs) -> None:
        self.row, self.text, self.needs = row, text, needs
        self._languages: frozenset[Language] | None = None

    @property
    def languages(self) -> frozenset[Language]:
        if self._languages is None:
            self._languages = languages(self.text)
        return self._languages


_Condition = Callable[[_Seen], bool]


def _compiled(rule: Rule) -> tuple[Choice, tuple[_Condition, ...]]:
    """A rule as its choice and its conditions, the cheap ones first."""
    name = rule.name or "+".join(rule.conditions) or "otherwise"
    made = [_condition(condition, wanted) for condition, wanted in rule.conditions.items() if condition != "language"]
    if rule.language:
        made.append(_condition("language", rule.language))
    return Choice(rule.tier, f"rules:{name}"[:40]), tuple(made)


def _condition(name: str, wanted: Any) -> _Condition:
    match name:
        case "over_tokens":
            return lambda seen: more_tokens_than(wanted, seen.text, seen.needs.size)
        case "over_bytes":
            return lambda seen: seen.needs.size > wanted
        case "images":
            return lambda seen: (seen.needs.images > 0) is wanted
        case "files":
            return lambda seen: (seen.needs.files > 0) is wanted
        case "tools":
            return lambda seen: seen.needs.tools is wanted
        case "schema":
            return lambda seen: seen.needs.json is wanted
        case "language":
            among = frozenset(wanted)
            return lambda seen: not among.isdisjoint(seen.languages)
        case "classification":
            return lambda seen: seen.needs.classification in wanted
        case "columns":
            return _columns(wanted)
        case _:
            raise AssertionError(f"no condition {name}")


def _columns(wanted: Mapping[str, Sequence[str]]) -> _Condition:
    listed = [(column, frozenset(words)) for column, words in wanted.items()]

    def met(seen: _Seen) -> bool:
        for column, words in listed:
            value = seen.row.get(column)
            if value is None or as_word(value) not in words:
                return False
        return True

    return met


class _Keywords:
    """A last resort: the tier of which the most different keywords stand in a text, the higher one of two equals.

    Such scores are below chance on some data, so that no rule of this kind is more than a start, and rows routed by
    it are marked.
    """

    def __init__(self, keywords: Mapping[Tier, Sequence[str]]) -> None:
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        self._set = re2.Set.SearchSet(options)
        tiers = [tier for tier in reversed(TIERS) if tier in keywords]
        self._choices = [Choice(tier, "rules:keywords (fallback)") for tier in tiers]
        self._speaks_for: list[int] = []
        """For each pattern of the set, the index of its choice."""
        for index, tier in enumerate(tiers):
            for word in dict.fromkeys(keywords[tier]):
                self._set.Add(_whole(word))
                self._speaks_for.append(index)
        self._set.Compile()

    def choice(self, text: str) -> Choice | None:
        """``None`` where no keyword is there, or RE2 has too little memory for the search."""
        found = self._set.Match(text)
        if not found:
            return None
        scores = [0] * len(self._choices)
        for pattern in found:
            scores[self._speaks_for[pattern]] += 1
        return self._choices[scores.index(max(scores))]  # the first of equals is the highest tier


def _whole(word: str) -> str:
    """A word's pattern: not as a part of another, where it begins or ends with an ASCII letter or digit."""
    before, after = (r"\b" if end.isascii() and end.isalnum() else "" for end in (word[0], word[-1]))
    return f"{before}{re2.escape(word)}{after}"
