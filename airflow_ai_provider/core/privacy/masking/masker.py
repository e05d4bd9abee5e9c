"""Masking: a row's personal values become tokens before a model sees them, and values again after.

Invariants:

- ``restore(mask(text)) == text`` for any text, and ``restore_value(mask_value(value)) == value`` for any nesting;
- a masked text holds nothing that the chosen detectors find, and none of the row's known values, except what the
  profile allows;
- a value's token depends on key, scope, type and value alone (collisions within a row aside): retries repeat it;
- only tokens minted for this row are restored, and restored text is never looked at again;
- if anything goes wrong there is no masked text: ``PrivacyError``, without the text in it.

The map from tokens to values lives in ``RowMask`` and is computed again from the row when needed; it is not stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from airflow_ai_provider.core.errors import PrivacyError
from airflow_ai_provider.core.privacy.detectors import text_view
from airflow_ai_provider.core.privacy.detectors.detector import KINDS, Detector, expand
from airflow_ai_provider.core.privacy.detectors.names_and_addresses import PERSON, NameFinder, load_backend
from airflow_ai_provider.core.privacy.detectors.text_view import Span, resolve
from airflow_ai_provider.core.privacy.leak_guard import LeakGuard
from airflow_ai_provider.core.privacy.masking import nested_values, tokens
from airflow_ai_provider.core.privacy.masking.known_values import KnownValues, fold
from airflow_ai_provider.core.privacy.masking.nested_values import Unescaped, unescaped
from airflow_ai_provider.core.privacy.masking.tokens import TEXT, Restorer, TokenReport

if TYPE_CHECKING:
    from airflow_ai_provider.core.policy import MaskingProfile

_RANK = (*map(str.upper, KINDS), TEXT)
_MAX_ROUNDS = 32
"""Searches of one text; ordinary texts take two, the second of which finds nothing more."""

_MAX_ESCAPED = 3
"""How often a text is taken out of JSON's escapes: JSON in a string of JSON in a string of JSON."""

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
    within it, and unrelated tokens in two scopes. A record's name given to ``for_row`` confines them to that record.
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
        self.entities = rules.entities
        """Types of the tokens that it mints."""
        self._pattern = tokens.TokenPattern(self.entities)
        self._guard = LeakGuard(rules.detector(by_word=False))
        self._expected: dict[str, _Expected] = {}

    def for_row(self, row: Mapping[str, Any], record: str | None = None) -> RowMask:
        """Return the mask of one row: its known values, and the tokens minted for it.

        ``record`` names the row where its tokens are to be no other row's.
        """
        scope = self._scope if record is None else json.dumps([self._scope, record])
        return _without_text(
            lambda: RowMask(self, KnownValues(row, self._columns, skip=self._skip), scope),
            "read the row's known values",
        )

    def expect(self, texts: Iterable[str]) -> None:
        """Say which texts come with every row: what is in them whatever the row is looked for once."""
        for text in texts:
            self._expected[text] = _Expected(text)

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
            if not findings:
                return covered
            for start, end, _ in findings:
                if not 0 <= start < end <= len(text):
                    raise PrivacyError("masking: a detector returned a span that is not within the text; not sent")
            spans = resolve([*covered, *findings], _RANK)
            if spans == covered:
                return spans
            covered = spans
            rest = _blanked(text, covered)
        raise PrivacyError("masking: the text keeps uncovering new values; it is not sent")

    def _check(self, masked: str, known: KnownValues, minted: Iterable[str]) -> None:
        left = self._left(masked, known)
        if not left:
            return
        skipped = [*_also_escaped(masked, known.find_skipped), *_places(masked, minted)]
        kinds = {span.entity.lower() for span in left if not any(_within(span, part) for part in skipped)}
        if kinds:
            raise PrivacyError(
                f"a masked text still holds a value of kind {', '.join(sorted(kinds))}; nothing was sent"
            )

    def _left(self, masked: str, known: KnownValues) -> list[Span]:
        """What a masked text still holds."""
        return _also_escaped(masked, lambda text: [*known.find(text), *self._guard.findings(text)])

    def _lets_pass(self, text: str, known: KnownValues) -> bool:
        """Whether neither masking nor the guard finds anything in a text that comes with every row, as is known from
        the first, and the row has nothing in it."""
        expected = self._expected[text]
        if any(known.may_be_in(reading) for reading in expected.readings):
            return False
        if expected.clean is None:
            named = self._names.find(text) if self._names else []
            expected.clean = not (named or self._findings(text, _NO_VALUES) or self._left(text, _NO_VALUES))
        return expected.clean

    def _findings(self, text: str, known: KnownValues) -> list[Span]:
        return _also_escaped(text, lambda part: self._found(part, known))

    def _found(self, text: str, known: KnownValues) -> list[Span]:
        view = text_view.view(text)
        found = list(known.find(text))
        if candidates := self._detector.candidates(view):
            skipped = known.find_skipped(text)
            for span in candidates:
                if not skipped or not any(_within(span, part) for part in skipped):
                    found.append(Span(span.start, span.end, span.entity.upper()))
        for token in self._pattern.find(view):
            found.append(Span(token.start, token.end, TEXT))
        return found


_NO_VALUES = KnownValues({}, {})


class _Expected:
    """A text that comes with every row."""

    __slots__ = ("clean", "readings")

    def __init__(self, text: str) -> None:
        self.clean: bool | None = None
        """Whether there is nothing in it, whatever the row; ``None`` until it has been checked."""
        self.readings: list[str] = []
        """As values of rows are looked for in it: folded, and without JSON's escapes."""
        _also_escaped(text, self._read)

    def _read(self, text: str) -> list[Span]:
        self.readings.append(fold(text))
        return []


class RowMask:
    """Masks and restores the texts of one row. Not for use by several threads at once."""

    __slots__ = ("_known", "_masker", "_minted", "_restorer", "_scope")

    def __init__(self, masker: Masker, known: KnownValues, scope: str) -> None:
        self._masker = masker
        self._known = known
        self._scope = scope
        self._minted: dict[tuple[str, str], str] = {}
        self._restorer = Restorer(masker._pattern)

    @property
    def tokens(self) -> Mapping[str, str]:
        """Token → original text, minted so far."""
        return MappingProxyType(self._restorer.texts)

    @property
    def scope(self) -> str:
        """What the row's tokens are confined to."""
        return self._scope

    @property
    def originals(self) -> Mapping[str, Any]:
        """Token → original value, of those that ``mask_value`` minted for what is no text."""
        return MappingProxyType(self._restorer.originals)

    def mask(self, text: str) -> str:
        """Return ``text`` with a token for every known value and every finding. Raises ``PrivacyError``."""
        return _without_text(lambda: self._mask(text), "mask a text")

    def masked(self, text: str) -> str:
        """Return ``mask(text)`` once ``check`` has passed it. Raises ``PrivacyError``."""
        if text in self._masker._expected and _without_text(lambda: self._passes(text), "mask a text"):
            return text
        masked = self.mask(text)
        self.check(masked)
        return masked

    def mask_value(self, value: Any) -> Any:
        """Mask inside a value of any nesting: lists, tuples and mappings (their keys too), JSON in strings, bytes.

        A number or other value with a finding becomes a token as a whole. Raises ``PrivacyError``.
        """
        return _without_text(lambda: nested_values.mask_value(self, value), "mask a value")

    def hide_value(self, entity: str, value: Any) -> Any:
        """Put a token in place of every leaf of a value (texts, numbers, …), however short. Raises ``PrivacyError``."""
        return _without_text(lambda: nested_values.hide_value(self, entity, value), "mask a value")

    def check(self, masked: str) -> None:
        """The leak guard: raise ``PrivacyError`` if a text about to leave holds a validated value or a known one.

        It does not ask how the text came about, so that a fault in masking cannot hide from it.
        """
        _without_text(lambda: self._masker._check(masked, self._known, self.tokens), "check a masked text")

    def restore(self, text: str) -> str:
        """Return ``text`` with this row's tokens replaced by what they stand for, in one pass.

        Tokens are recognised in the forms that models give them; those of other rows stay as they are. Raises
        ``PrivacyError``.
        """
        return _without_text(lambda: self._restorer.restore(text), "restore a text")

    def restore_value(self, value: Any) -> Any:
        """Restore inside a value of any nesting; a text that is JSON, such as a tool's arguments, stays JSON.

        Raises ``PrivacyError``.
        """
        return _without_text(lambda: nested_values.restore_value(self._restorer, value), "restore a value")

    def report(self, text: str) -> TokenReport:
        """What a masked answer made of this row's tokens. Raises ``PrivacyError``."""
        return _without_text(lambda: self._restorer.report(text), "look for tokens in a text")

    def __repr__(self) -> str:
        return f"RowMask({len(self.tokens)} tokens)"

    def spans(self, text: str) -> list[Span]:
        """What is to be masked in a text, in order and disjoint."""
        return self._masker._spans(text, self._known)

    def with_tokens(self, text: str, spans: Iterable[Span]) -> str:
        """``text`` with tokens in place of the spans, which are in order and disjoint."""
        spans = list(spans)
        self._mint((span.entity, text[span.start : span.end]) for span in spans)
        pieces: list[str] = []
        position = 0
        for start, end, entity in spans:
            pieces += text[position:start], self._minted[entity, text[start:end]]
            position = end
        pieces.append(text[position:])
        return "".join(pieces)

    def token_for(self, entity: str, text: str, original: Any = None) -> str:
        """The token of a whole value; ``original`` is the value where it is no text, and ``text`` how it reads."""
        if original is None:
            self._mint([(entity, text)])
            return self._minted[entity, text]
        # The number 5 and the text "5" have two tokens, or the one would come back as the other.
        marked = f"\0{type(original).__name__}:{original}"
        self._mint([(entity, marked)])
        token = self._minted[entity, marked]
        self._restorer.texts[token] = text
        self._restorer.originals[token] = original
        return token

    def _passes(self, text: str) -> bool:
        return self._masker._lets_pass(text, self._known)

    def _mask(self, text: str) -> str:
        spans = self.spans(text)
        return self.with_tokens(text, spans) if spans else text

    def _mint(self, values: Iterable[tuple[str, str]]) -> None:
        """Give each new value its token; values whose codes begin alike all get longer ones."""
        fresh = {value: self._symbols(value) for value in values if value not in self._minted}
        if not fresh:
            return
        taken = self._restorer.texts
        minted = {tokens.write(value[0], symbols[: tokens.SHORTEST]): value for value, symbols in fresh.items()}
        if len(minted) < len(fresh) or not taken.keys().isdisjoint(minted):
            minted = _told_apart(fresh, taken)
        for token, value in minted.items():
            self._minted[value] = token
            taken[token] = value[1]

    def _symbols(self, value: tuple[str, str]) -> str:
        return tokens.code_symbols(self._masker._key, self._scope, *value)


def _told_apart(symbols: Mapping[tuple[str, str], str], taken: Container[str]) -> dict[str, tuple[str, str]]:
    """Tokens for values, by their symbols: as short as they can be without one of two, or one that is taken."""
    lengths = dict.fromkeys(symbols, tokens.SHORTEST)
    while True:
        owners: dict[str, list[tuple[str, str]]] = {}
        for value, length in lengths.items():
            owners.setdefault(tokens.write(value[0], symbols[value][:length]), []).append(value)
        clashes = [group for token, group in owners.items() if len(group) > 1 or token in taken]
        if not clashes:
            return {token: value for token, (value,) in owners.items()}
        for value in chain.from_iterable(clashes):
            lengths[value] += 1
            if lengths[value] > tokens.LONGEST:
                raise PrivacyError("masking: two values of a row have the same keyed hash")


def _also_escaped(text: str, find: Callable[[str], Sequence[Span]]) -> list[Span]:
    """What is found in a text as written, and as it reads without JSON's escapes: models read through them."""
    found = list(find(text))
    if "\\" not in text:
        return found
    ways: list[Unescaped] = []
    while len(ways) < _MAX_ESCAPED and (read := unescaped(ways[-1].text if ways else text)):
        ways.append(read)
        for start, end, entity in find(read.text):
            for way in reversed(ways):
                start, end = way.written(start), way.written(end)
            found.append(Span(start, end, entity))
    return found


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
