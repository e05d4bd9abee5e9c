"""Numbers written in digits: one separator-tolerant pass finds runs, then classifiers decide on windows of groups.

Two tiers. A window that its validator accepts is found anywhere, unless letters or further digits touch it: then it
is part of a longer identifier. A window that no validator accepts is still found next to a word that says what it
is ("card no", 身份证): a number with a typing error is personal too. A bank account has no form of its own: the word
is all there is.

The work is linear: a run has groups of digits, a window holds at most ``_WINDOW`` groups and 20 digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import re2

from airflow_ai_provider.core.privacy.detectors import checksums, phones
from airflow_ai_provider.core.privacy.detectors.text_view import LETTER, Gate, Span, View

SIGN = rb"[0-9](?:[ ./()_\xb7-]{0,3}[0-9]){6}"
"""Where this is not, there is no number of any kind."""

_SEPARATORS = b" ./()_\xb7-"
# Separators and digits are disjoint and a failed start has looked at 25 bytes at most, so ``re`` is linear here too.
_RUN = re.compile(rb"[0-9](?:[ ./()_\xb7-]{0,3}[0-9]){6,}")
_GROUP = re.compile(rb"[0-9]+")
_WINDOW = 7
_MAX_DIGITS = 20
_MONEY = b"$"
_PRICE = re.compile(rb"\.[0-9]{1,2}(?![0-9])")

_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}
_LETTERS = _WORD - frozenset(b"0123456789")
_TIGHT = re.compile(rb"[0-9 ._\xb7-]+")
"""Separators inside card and identity numbers; phone numbers have brackets and slashes as well."""

_CONTEXT_BEFORE = 40
# From a word to its number: no further than the end of the sentence. A colon may be followed by a line of its own, and
# the stop of an abbreviation belongs to its word.
_GAP = re.compile(r"[^0-9\[\].。；;\n\r!?！？]{0,16}|[ ]?[:：]\s{1,4}")
_ABBREVIATED = (b"no", b"nr", b"num", b"tel")


def _is_gap(before: bytes, start: int) -> bool:
    """Whether what stands between a word that ends at ``start`` and the number is neither long nor a sentence's end."""
    if before[start : start + 1] == b"." and before[:start].lower().endswith(_ABBREVIATED):
        start += 1
    return _GAP.fullmatch(before[start:].decode("utf-8", "replace")) is not None


class Window(NamedTuple):
    """Neighbouring digit groups of one run. Offsets count bytes of the view."""

    data: bytes
    start: int
    end: int
    digits: bytes
    groups: Sequence[tuple[int, int]]
    """Start and end of each group."""

    def written(self) -> bytes:
        """The window as it stands in the text, with its separators."""
        return self.data[self.start : self.end]


@dataclass(frozen=True, slots=True, eq=False)
class NumberKind:
    """A type of number: how it is validated, and the words that announce it."""

    entity: str
    accept: Callable[[View, Window], tuple[int, int] | None]
    """Start and end of the number if the window is one: the ends may take in a ``+``, a check letter, an extension."""
    valid: frozenset[int]
    """How many digits a valid one has (without a check letter)."""
    words: str
    """Pattern for RE2, whatever the case."""
    digits: tuple[int, int]
    """Fewest and most digits that are found by context alone."""
    word_suffices: bool = False
    """Whether the word is all there can be: then a number behind it counts as validated."""


def _card(_: View, window: Window) -> tuple[int, int] | None:
    if not checksums.card(window.digits) or window.data[window.start - 1 : window.start] == b"+":
        return None
    if len(window.groups) == 1:
        return window.start, window.end
    sizes = [end - start for start, end in window.groups]
    regular = min(sizes[:-1]) >= 3 or max(sizes) == 1
    return (window.start, window.end) if regular and _TIGHT.fullmatch(window.written()) else None


def _cn_id(_: View, window: Window) -> tuple[int, int] | None:
    digits = window.digits
    if not _TIGHT.fullmatch(window.written()):
        return None
    if len(digits) == 18:
        return (window.start, window.end) if checksums.cn_id(digits[:17], digits[17:]) else None
    end = _letter_x(window.data, window.end)
    return (window.start, end) if end and checksums.cn_id(digits, b"X") else None


def _cn_id_15(_: View, window: Window) -> tuple[int, int] | None:
    tight = len(window.groups) <= 3 and _TIGHT.fullmatch(window.written())
    return (window.start, window.end) if tight and checksums.cn_id_15(window.digits) else None


def _ssn(_: View, window: Window) -> tuple[int, int] | None:
    """Three, two and four digits in groups of one separator; nine digits in a row are anything."""
    if [end - start for start, end in window.groups] != [3, 2, 4]:
        return None
    separators = window.written().translate(None, b"0123456789")
    if len(separators) != 2 or separators[:1] != separators[1:] or separators[:1] not in b"-. ":
        return None
    if separators[:1] in _neighbours(window.data, window.start, window.end):
        return None
    return (window.start, window.end) if checksums.ssn(window.digits) else None


def _bank_account(view: View, window: Window) -> None:
    """Account numbers have no form that is known everywhere."""


def _letter_x(data: bytes, end: int) -> int:
    """Where a check letter X that follows ``end`` ends, or 0."""
    position = end + 1 if data[end : end + 1] in (b" ", b"-", b".") else end
    if data[position : position + 1] in (b"X", b"x") and not _is_in(data, position + 1, _WORD):
        return position + 1
    return 0


def _phone(view: View, window: Window) -> tuple[int, int] | None:
    data = window.data
    start = _phone_start(data, window.start, window.end)
    if start and data[start - 1] in _MONEY:
        return None
    if len(window.groups) == 1 and (_is_decimal(data, window.start) or _PRICE.match(data, window.end)):
        return None
    written = data[start : window.end]
    own = phones.has_own_form(written, window.digits)
    if not own:
        neighbours = _neighbours(data, window.start, window.end)
        if not phones.is_grouped(written, window.digits, neighbours) or phones.is_amount(view, start, window.end):
            return None
    if phones.is_address(view, start, window.end, surely=own):
        return None
    return start, phones.extension_end(view, window.end)


def _phone_start(data: bytes, start: int, end: int) -> int:
    """Take in what belongs to the number before its first digit: ``+``, and ``(`` if it closes before ``end``."""
    for _ in range(2):  # "(+44) 20" and "+(44) 20"
        if start and data[start - 1] == 43:
            start -= 1
        elif start > 1 and data[start - 2 : start] == b"+ ":
            start -= 2
        if start and data[start - 1] == 40 and data.count(b")", start, end) > data.count(b"(", start, end):
            start -= 1
    return start


def _neighbours(data: bytes, start: int, end: int) -> bytes:
    """The separators by which further groups of digits join on, before and after."""
    before, after = data[max(0, start - 2) : start], data[end : end + 2]
    return (before[-1:] if before[:1].isdigit() else b"") + (after[:1] if after[1:].isdigit() else b"")


def _is_decimal(data: bytes, start: int) -> bool:
    """Whether the digits at ``start`` are the decimals of a number, whose whole part has at most 6 digits."""
    before = data[max(0, start - 8) : start]
    return before[-1:] == b"." and before[-2:-1].isdigit() and not (len(before) == 8 and before[:-1].isdigit())


def _is_in(data: bytes, position: int, members: frozenset[int]) -> bool:
    return 0 <= position < len(data) and data[position] in members


CN_ID = NumberKind(
    "cn_id",
    _cn_id,
    frozenset({17, 18}),
    r"身份证|身份証|身分證|证件号|公民身份号码|\b(?:id card|identity (?:card|number)|resident id)\b",
    (14, 20),
)
CN_ID_15 = NumberKind("cn_id", _cn_id_15, frozenset({15}), CN_ID.words, CN_ID.digits)
"""Without a check digit: a card number of 15 digits, which has one, goes before it."""
CARD = NumberKind(
    "card",
    _card,
    frozenset(range(12, 20)),
    r"卡号|卡號|银行卡|信用卡|储蓄卡|借记卡|账号|帐号|账户"
    r"|\b(?:(?:credit|debit|bank|payment) ?card|card ?(?:no|num|number|nr)|visa|mastercard|amex|pan)\b",
    (10, 20),
)
SSN = NumberKind(
    "ssn",
    _ssn,
    frozenset({9}),
    r"社会安全号|社安号|\b(?:ssn|social security|social insurance|itin|taxpayer id(?:entification)?)"
    r"(?: ?(?:no|num|number|nr))?\b",
    (9, 9),
)
BANK_ACCOUNT = NumberKind(
    "bank_account",
    _bank_account,
    frozenset(),
    r"账号|帐号|帳號|账户|帐户|户口号码|收款账|付款账"
    r"|\b(?:(?:bank |savings |checking |current |giro )?acc(?:oun)?t(?: ?(?:no|num|number|nr|id))?|a/c(?: no)?"
    r"|(?:routing|transit|aba)(?: (?:no|num|number))?|bsb|kontonummer|konto|num[eé]ro de (?:compte|cuenta)"
    r"|rekeningnummer)\b",
    (7, 20),
    word_suffices=True,
)
PHONE = NumberKind(
    "phone",
    _phone,
    frozenset(range(7, 18)),
    r"电话|電話|手机|手機|联系方式|联系|聯繫|致电|拨打|座机|传真|热线|熱線"
    r"|\b(?:tel|telephone|phone|mobile|cell|cellphone|fax|desk|whatsapp|call|dial|sms|reach|contact|hotline"
    r"|tel[eé]fono|telefon|handy|t[eé]l[eé]phone|portable|m[oó]vil)(?: ?(?:me|us|him|her|at|on|no|num|number|nr))*\b",
    (7, _MAX_DIGITS),
)
NUMBER_KINDS = (CN_ID, CARD, CN_ID_15, SSN, BANK_ACCOUNT, PHONE)
"""In the order in which they claim a window: the stricter the validator, the earlier."""


# A label behind the number: "212 555 0123 (mobile)", "3660170548-Fax".
_LABEL_AFTER = re.compile(
    r"(?:[ -]{0,2}[-(（/,])?[ ]?"
    r"(?:office|fax|mobile|cell|home|work|tel|phone|direct|办公|手机|传真|家庭|座机)(?![A-Za-z_])",
    re.I,
)


class NumberFinder:
    """Finds numbers of the chosen kinds; ``by_word`` also those that only a word next to them gives away."""

    def __init__(self, kinds: Sequence[NumberKind], *, by_word: bool) -> None:
        self.kinds = tuple(kinds)
        self.by_word = by_word
        self.phones = PHONE in self.kinds
        counts = range(_MAX_DIGITS + 1)
        self.by_count = {count: [kind for kind in self.kinds if count in kind.valid] for count in counts}
        """The kinds of which a number of so many digits can be one."""
        # On UTF-8, where a Chinese character is no part of an English word beside it.
        words = [f"(?i:{kind.words})".encode() for kind in self.kinds]
        self._words = [re2.compile(pattern) for pattern in words]
        self._named = Gate(words, re2.Options())

    def __call__(self, view: View) -> Iterator[Span]:
        """Yield spans of ``view.text``."""
        for match in _RUN.finditer(view.data):
            yield from _Run(view, self, *match.span()).spans()

    def named_at(self, text: str, start: int, end: int, digits: int) -> NumberKind | None:
        """The kind for so many digits whose word is nearest before ``text[start:end]`` in the same sentence.

        Failing that, a telephone if a label says so right behind.
        """
        before = text[max(0, start - _CONTEXT_BEFORE) : start].encode("utf-8", "replace")
        nearest, named = -1, None
        for index in self._named.open_for(before):
            kind = self.kinds[index]
            if kind.digits[0] <= digits <= kind.digits[1]:
                for word in self._words[index].finditer(before):
                    if word.end() >= nearest and _is_gap(before, word.end()):
                        nearest, named = word.end(), kind
        if named is None and self.phones and _LABEL_AFTER.match(text, end, end + 16):
            return PHONE
        return named


class _Run:
    """One maximal row of digit groups and separators."""

    def __init__(self, view: View, finder: NumberFinder, start: int, end: int) -> None:
        self.view = view
        self.finder = finder
        self.groups = [match.span() for match in _GROUP.finditer(view.data, start, end)]
        self.before_is_word = _is_in(view.data, start - 1, _WORD)
        self.after_is_letter = _is_in(view.data, end, _LETTERS)

    def spans(self) -> Iterator[Span]:
        count = len(self.groups)
        found = self._validated(0)
        if found is None:
            # A word that names the whole run decides: no phone number is looked for inside a mistyped card number.
            announced = list(self._announced(0, count))
            if count == 1 or (announced and announced[0].entity != PHONE.entity and self._is_whole(announced[0])):
                yield from announced
                return
        free = index = 0
        while index < count:
            found = found or self._validated(index)
            if found is None:
                index += 1
                continue
            upto, span = found
            yield from self._announced(free, index)
            yield span
            free = index = upto
            found = None
        yield from self._announced(free, count)

    def _is_whole(self, span: Span) -> bool:
        return self.view.original(self.groups[0][0], self.groups[-1][1]) == (span.start, span.end)

    def _window(self, first: int, upto: int) -> Window:
        groups = self.groups[first:upto]
        data = self.view.data
        start, end = groups[0][0], groups[-1][1]
        return Window(data, start, end, data[start:end].translate(None, _SEPARATORS), groups)

    def _validated(self, first: int) -> tuple[int, Span] | None:
        """The longest valid number that starts with a group, and the index of the group after it."""
        if first == 0 and self.before_is_word:
            return None
        for upto in self._reach(first):
            window = self._window(first, upto)
            count = len(window.digits)
            for kind in self.finder.by_count.get(count, ()):
                ends = kind.accept(self.view, window)
                if ends and not (upto == len(self.groups) and self.after_is_letter and ends[1] == window.end):
                    return upto, self._span(kind, *ends, count)
        return None

    def _span(self, kind: NumberKind, start: int, end: int, digits: int) -> Span:
        """A phone number has no checksum: a word for something else right before it knows better."""
        start, end = self.view.original(start, end)
        if kind is PHONE and self.view.text[start] not in "+＋":
            kind = self.finder.named_at(self.view.text, start, end, digits) or kind
        return Span(start, end, kind.entity)

    def _reach(self, first: int) -> Sequence[int]:
        """Ends of the windows worth trying, longest first."""
        count = len(self.groups)
        if count == 1:
            return (1,)
        ends = []
        total = 0
        for index in range(first, min(first + _WINDOW, count)):
            start, end = self.groups[index]
            total += end - start
            if total > _MAX_DIGITS:
                break
            if total >= 7:
                ends.append(index + 1)
        if first == 0 and _WINDOW < count <= _MAX_DIGITS:
            ends.append(count)  # every digit on its own
        ends.reverse()
        return ends

    def _announced(self, first: int, upto: int) -> Iterator[Span]:
        """A number that failed its validator but stands next to a word that names its kind."""
        if first >= upto:
            return
        digits = 0
        last = first
        for last in range(first, upto):
            size = self.groups[last][1] - self.groups[last][0]
            if digits + size > _MAX_DIGITS:
                break
            digits += size
        else:
            last = upto
        if last == first or digits < 7:
            return
        start, end = self.groups[first][0], self.groups[last - 1][1]
        if phones.is_date(self.view.data[start:end]):
            return
        start, end = self.view.original(start, end)
        kind = self.finder.named_at(self.view.text, start, end, digits)
        if kind and (self.finder.by_word or kind.word_suffices):
            yield Span(start, end, kind.entity)
