"""Masking: a row's personal values become tokens before a model sees them, and values again after.

Invariants:

- ``restore(mask(text)) == text`` for any text;
- a masked text holds nothing that the chosen detectors find, and none of the row's known values, except what the
  profile allows;
- a value's token depends on key, scope, type and value alone (collisions within a row aside): retries repeat it;
- only tokens minted for this row are restored, and restored text is never looked at again;
- if anything goes wrong there is no masked text: ``PrivacyError``, without the text in it.

The map from tokens to values lives in ``RowMask`` and is computed again from the row when needed; it is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.privacy import normalise, tokens
from airflow_ai_provider.privacy.detect import KINDS, Detector, expand
from airflow_ai_provider.privacy.guard import LeakGuard
from airflow_ai_provider.privacy.known import KnownValues
from airflow_ai_provider.privacy.names import PERSON, NameFinder, load_backend
from airflow_ai_provider.privacy.spans import Span, resolve

if TYPE_CHECKING:
    from airflow_ai_provider.policy import MaskingProfile

TEXT = "TEXT"
"""Type of what is masked only because it reads as a token."""
_RANK = (*map(str.upper, KINDS), TEXT)
_MAX_ROUNDS = 32
"""Searches of one text; ordinary texts take two, the second of which finds nothing more."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class MaskingRules:
    """What to mask. Raises ``PrivacyError`` for whatever in it cannot be used."""

    detect: frozenset[str] = frozenset()
    """Names of kinds (``detect.KINDS``) and of groups, which are replaced by their kinds."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column name → type name, such as ``customer_name`` → ``PERSON``: capital letters and underscores."""
    confidence: Literal["validated", "context"] = "context"
    """``context``: also what fails its check but stands next to a word that names it."""
    patterns: Mapping[str, str] = field(default_factory=dict)
    """Type name → RE2 pattern of the user."""
    allow: tuple[str, ...] = ()
    """Values, and patterns between slashes, that are no finding."""
    skip: tuple[str, ...] = ()
    """Columns whose value is not personal, whatever it looks like."""
    names: str | None = None
    """``presidio`` or ``module:function``: finds names in free text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detect", expand(self.detect))
        for where, types in (("column", self.columns.items()), ("pattern", ((name, name) for name in self.patterns))):
            for name, entity in types:
                if not tokens.TYPE.fullmatch(entity):
                    raise PrivacyError(
                        f"masking: {where} {name!r}: type {entity!r}: expected capital letters and underscores, "
                        "as PERSON"
                    )

    @classmethod
    def of(cls, profile: MaskingProfile) -> MaskingRules:
        """The rules of a profile of ``policy.yaml``."""
        return cls(
            detect=frozenset(profile.detect),
            columns=dict(profile.columns),
            confidence=profile.confidence,
            patterns=dict(profile.patterns),
            allow=profile.allow,
            skip=profile.skip,
            names=profile.names,
        )

    @property
    def entities(self) -> frozenset[str]:
        """The types that tokens can have."""
        names = {PERSON} if self.names else set()
        return frozenset({TEXT, *map(str.upper, self.detect), *self.columns.values(), *self.patterns, *names})

    def detector(self, *, by_word: bool) -> Detector:
        """What finds the kinds and patterns, one tier or both."""
        return Detector(self.detect, by_word=by_word, patterns=self.patterns, allow=self.allow)


class Masker:
    """Masks rows by one set of rules, with one key, in one scope; safe to share between threads.

    ``scope`` is what equal tokens are confined to, such as ``team/support``: the same value has the same token
    within it, and unrelated tokens in two scopes.
    """

    def __init__(self, rules: MaskingRules, key: bytes, scope: str) -> None:
        if len(key) < 16:
            raise PrivacyError("masking: expected a key of at least 16 bytes, as Keyring.derive gives")
        self._columns = dict(rules.columns)
        self._skip = rules.skip
        self._key = key
        self._scope = scope
        self._detector = rules.detector(by_word=rules.confidence == "context")
        self._names = NameFinder(load_backend(rules.names)) if rules.names else None
        self._pattern = tokens.TokenPattern(rules.entities)
        self._guard = LeakGuard(rules.detector(by_word=False))

    def for_row(self, row: Mapping[str, Any]) -> RowMask:
        """Return the mask of one row: its known values, and the tokens minted for it."""
        return _without_text(
            lambda: RowMask(self, KnownValues(row, self._columns, skip=self._skip)), "read the row's known values"
        )

    def __repr__(self) -> str:
        return f"Masker(scope={self._scope!r})"

    def _spans(self, text: str, known: KnownValues) -> list[Span]:
        """Everything to mask: what is found, and what is found once that is gone.

        A number that touches a name is part of a longer word, until the name is masked; so the rest is searched
        again, with tokens' brackets in place of what was found, until nothing more is found: once for most texts.
        """
        named = self._names.find(text) if self._names else []
        covered: list[Span] = []
        rest = text
        for _ in range(_MAX_ROUNDS):
            findings = [*named, *self._findings(rest, known)]
            if any(not 0 <= start < end <= len(text) for start, end, _ in findings):
                raise PrivacyError("masking: a detector returned a span that is not within the text; it is not sent")
            spans = resolve([*covered, *findings], _RANK)
            if spans == covered:
                return spans
            covered = spans
            rest = _blanked(text, covered)
        raise PrivacyError("masking: the text keeps uncovering new values; it is not sent")

    def _check(self, masked: str, known: KnownValues, minted: Iterable[str]) -> None:
        left = [*known.find(masked), *self._guard.findings(masked)]
        if not left:
            return
        skipped = [*known.find_skipped(masked), *_places(masked, minted)]
        kinds = {span.entity.lower() for span in left if not any(_within(span, part) for part in skipped)}
        if kinds:
            raise PrivacyError(
                f"a masked prompt still holds a value of kind {', '.join(sorted(kinds))}; nothing was sent"
            )

    def _findings(self, text: str, known: KnownValues) -> Iterable[Span]:
        view = normalise.view(text)
        yield from known.find(text)
        skipped = list(known.find_skipped(text))
        for span in self._detector.candidates(view):
            if not any(_within(span, part) for part in skipped):
                yield span._replace(entity=span.entity.upper())
        for token in self._pattern.find(view):
            yield Span(token.start, token.end, TEXT)


class RowMask:
    """Masks and restores the texts of one row. Not for use by several threads at once."""

    __slots__ = ("_known", "_masker", "_minted", "_tokens")

    def __init__(self, masker: Masker, known: KnownValues) -> None:
        self._masker = masker
        self._known = known
        self._minted: dict[tuple[str, str], str] = {}
        self._tokens: dict[str, str] = {}

    @property
    def tokens(self) -> Mapping[str, str]:
        """Token → original text, minted so far."""
        return MappingProxyType(self._tokens)

    def mask(self, text: str) -> str:
        """Return ``text`` with a token for every known value and every finding. Raises ``PrivacyError``."""
        return _without_text(lambda: self._mask(text), "mask a text")

    def check(self, masked: str) -> None:
        """The leak guard: raise ``PrivacyError`` if a text about to leave holds a validated value or a known one.

        It does not ask how the text came about, so that a fault in masking cannot hide from it.
        """
        _without_text(lambda: self._masker._check(masked, self._known, self._tokens), "check a masked text")

    def restore(self, text: str) -> str:
        """Return ``text`` with this row's tokens replaced by what they stand for, in one pass.

        Tokens are recognised in the forms that models give them; those of other rows stay as they are. Raises
        ``PrivacyError``.
        """
        return _without_text(lambda: self._restore(text), "restore a text")

    def restore_json(self, value: Any) -> Any:
        """Restore inside the strings of a JSON value, keys included. Parse first: a value may hold quotes."""
        if isinstance(value, str):
            return self.restore(value)
        if isinstance(value, Mapping):
            restored: dict[Any, Any] = {}
            for key, part in value.items():
                name = self.restore(key) if isinstance(key, str) else key
                # Two keys may be forms of one token: the second keeps its own name, nothing is lost.
                restored[key if name in restored else name] = self.restore_json(part)
            return restored
        if isinstance(value, list | tuple):
            return [self.restore_json(part) for part in value]
        return value

    def __repr__(self) -> str:
        return f"RowMask({len(self._tokens)} tokens)"

    def _mask(self, text: str) -> str:
        spans = self._masker._spans(text, self._known)
        if not spans:
            return text
        self._mint((span.entity, text[span.start : span.end]) for span in spans)
        pieces: list[str] = []
        position = 0
        for start, end, entity in spans:
            pieces += text[position:start], self._minted[entity, text[start:end]]
            position = end
        pieces.append(text[position:])
        return "".join(pieces)

    def _mint(self, values: Iterable[tuple[str, str]]) -> None:
        """Give each new value its token; values whose codes begin alike all get longer ones."""
        fresh = {value: tokens.SHORTEST for value in values if value not in self._minted}
        if not fresh:
            return
        key, scope = self._masker._key, self._masker._scope
        symbols = {value: tokens.code_symbols(key, scope, *value) for value in fresh}
        while True:
            owners: dict[str, list[tuple[str, str]]] = {}
            for value, length in fresh.items():
                owners.setdefault(tokens.write(value[0], symbols[value][:length]), []).append(value)
            clashes = [group for token, group in owners.items() if len(group) > 1 or token in self._tokens]
            if not clashes:
                break
            for value in chain.from_iterable(clashes):
                fresh[value] += 1
                if fresh[value] > tokens.LONGEST:
                    raise PrivacyError("masking: two values of a row have the same keyed hash")
        for token, (value,) in owners.items():
            self._minted[value] = token
            self._tokens[token] = value[1]

    def _restore(self, text: str) -> str:
        pieces: list[str] = []
        position = 0
        for found in self._masker._pattern.find(normalise.view(text)):
            value = self._tokens.get(found.token)
            if value is not None:
                pieces += text[position : found.start], value
                position = found.end
        pieces.append(text[position:])
        return "".join(pieces)


def _places(text: str, minted: Iterable[str]) -> Iterator[Span]:
    """Where tokens stand."""
    for token in minted:
        start = text.find(token)
        while start >= 0:
            yield Span(start, start + len(token), TEXT)
            start = text.find(token, start + len(token))


def _within(span: Span, part: Span) -> bool:
    return part.start <= span.start and span.end <= part.end


def _blanked(text: str, spans: Iterable[Span]) -> str:
    """``text`` of the same length, with what looks like a token to every detector in place of the spans."""
    pieces: list[str] = []
    position = 0
    for start, end, _ in spans:
        pieces += text[position:start], "[" + "_" * (end - start - 2) + "]" if end - start > 1 else "]"
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def _without_text(action: Callable[[], _Result], doing: str) -> _Result:
    """Run an action; whatever fails becomes a ``PrivacyError`` that holds neither the text nor the cause."""
    try:
        return action()
    except PrivacyError:
        raise
    except Exception as error:  # noqa: BLE001  anything at all must stop the call, and its message may quote the text
        kind = type(error).__name__
    # Raised outside the handler: inside, Python would keep the cause and its text in __context__.
    raise PrivacyError(f"could not {doing} ({kind}); nothing was sent")
