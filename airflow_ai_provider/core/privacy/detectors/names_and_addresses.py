"""Find names and postal addresses in free text.

Postal addresses, by what surely makes one: a road with a house number, and what stands around it.

Places without a number, and addresses that follow no such form, are not found: put them into columns.

Names in free text, by whatever the deployment has for it: an optional backend beside the known values.

A backend takes a text and returns pairs of offsets, each a name. It is foreign code: it runs in a thread of its own
with a time limit, what it returns is checked, and whatever goes wrong stops the call. Nothing here imports spaCy
unless a profile asks for it.
"""

from __future__ import annotations

import importlib
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from airflow_ai_provider.core.errors import PrivacyError
from airflow_ai_provider.core.privacy.detectors.text_view import LETTER, WIDE, Span, View, compile_bytes

_EDGE = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}

# Words of names. Accented letters are one LETTER byte each.
_NAME = rb"[A-Z\xe0][A-Za-z\xe0'-]*"
_NAMES = _NAME + rb"(?:[ -]" + _NAME + rb"){0,3}"
_HOUSE = rb"[0-9]{1,6}[A-Za-z]?(?:[-/][0-9]{1,4}[A-Za-z]?)?"
_POSTCODE_PLACE = rb"(?:,? (?:[A-Z]{1,2}-)?[0-9]{4,5}(?: [A-Z]{2})? " + _NAME + rb")?"

# 12b North Main Street, Suite 4, Springfield, IL 62704; 10 Downing Street, London SW1A 2AA
_STREET = (
    rb"(?i:street|st|avenue|ave|av|road|rd|drive|dr|lane|ln|boulevard|blvd|court|ct|place|pl|square|sq|terrace|ter"
    rb"|way|crescent|cres|close|highway|hwy|parkway|pkwy|circle|cir|trail|grove|gardens|mews|row|walk)"
)
_ENGLISH_WORD = rb"(?:[A-Z\xe0][A-Za-z\xe0'.-]*|[0-9]{1,3}(?:st|nd|rd|th)|of|de|la|le|du|des|del|da|do|the|and)"
_UNIT = (
    rb"(?:,?[ \n]{1,2}(?i:suite|ste|apt|apartment|unit|floor|fl|flat|room|rm|#)\.?[ ]?#?[A-Za-z]?[0-9]{1,5}[A-Za-z]?)?"
)
_US_CITY = rb",?[ \n]{1,3}" + _NAMES + rb",? [A-Z]{2} [0-9]{5}(?:-[0-9]{4})?"
_UK_CITY = rb",?[ \n]{1,3}(?:" + _NAME + rb",? ){0,2}[A-Z]{1,2}[0-9][0-9A-Z]? [0-9][A-Z]{2}"
_ENGLISH = (_HOUSE + rb",? (?:" + _ENGLISH_WORD + rb" ){1,4}" + _STREET + rb"\b\.?(?: [NSEW]{1,2}\b)?" + _UNIT) + (
    rb"(?:" + _US_CITY + rb"|" + _UK_CITY + rb")?"
)
_BOX = rb"(?i:p\.? ?o\.? ?box) [0-9]{1,6}"

# 12 bis, rue de la Paix 75002 Paris
_RUE = rb"(?i:rue|avenue|av\.|boulevard|bd|place|chemin|all\xe0e|quai|impasse|cours)"
_FRENCH = (
    _HOUSE
    + rb",? (?:(?:bis|ter),? )?"
    + _RUE
    + rb" (?:(?:de|du|des|la|le|les|d'|l') ?){0,2}"
    + _NAMES
    + _POSTCODE_PLACE
)
# Calle de Alcalá 48; Via Roma, 12
_CALLE = rb"(?i:via|viale|piazza|corso|calle|avenida|avda\.|plaza|paseo|rua|travessa|largo)"
_OF = rb"(?:(?:de|del|della|dei|da|do|dos|la|las|los|el) ){0,2}"
_ROMANCE = _CALLE + rb" (?:" + _OF + _NAME + rb" ?){1,3},? ?[0-9]{1,4}[A-Za-z]?\b" + _POSTCODE_PLACE
# Hauptstraße 5, 10115 Berlin; Keizersgracht 12
_GERMANIC = (
    rb"[A-Z\xe0][A-Za-z\xe0-]{2,30}(?:stra(?:ss|\xe0)e|str\.|weg|gasse|platz|allee|ufer|ring|damm|straat|laan|gracht"
) + (rb"|gatan|v\xe0gen|gade|vej|veien|gata) [0-9]{1,4} ?[a-zA-Z]?\b" + _POSTCODE_PLACE)
_WESTERN = compile_bytes(b"|".join((_ENGLISH, _BOX, _FRENCH, _ROMANCE, _GERMANIC)))
_WESTERN_SIGN = (
    rb" " + _STREET + rb"\b|(?i:box) [0-9]|[0-9A-Za-z][ ,] ?" + _RUE + rb" |" + _CALLE + rb" [A-Za-z\xe0]"
) + rb"|(?:\xe0e|sse|str\.|weg|platz|allee|ufer|ring|damm|laan|aat|acht|tan|gen|ade|vej|ien|ata) [0-9]"

# 北京市朝阳区建国路88号2栋301室. The view holds WIDE bytes; which characters they are is decided on the text.
_DIGITS = rb"[0-9]{1,5}(?:-[0-9]{1,4})?"
_CN = compile_bytes(
    rb"\xc0{2,40} ?" + _DIGITS + rb" ?\xc0(?: ?\xc0{0,10} ?[A-Za-z]?\xc0? ?" + _DIGITS + rb" ?\xc0{1,2}){0,4}"
)
_CN_SIGN = rb"\xc0 ?[0-9][0-9-]* ?\xc0"
_FIRST_DIGIT = re.compile(r"[0-9０-９]")
_ROAD = re.compile(
    r"(?:路|街|道|巷|弄|胡同|村|里|坊|园|苑|小区|花园|公寓|大厦|广场)(?:[东南西北中]?[一二三四五六七八九十]?[段区期])?\s?$"
)
_NUMBER = r"[0-9０-９]{1,5}(?:[-－—][0-9０-９]{1,4})?\s?"
_HOUSE_NUMBER = re.compile(_NUMBER + r"(?:号院|号楼|号|弄|巷|栋|幢|座|组|室)")
_NEXT_UNIT = re.compile(
    r"\s?(?:[一-鿿]{2,10}(?=[A-Za-zＡ-Ｚ]?座?[0-9０-９]))?(?:[A-Za-zＡ-Ｚ]座?)?\s?"
    + _NUMBER
    + r"(?:号楼|号|栋|幢|座|单元|层|楼|室|房|户)"
)
_AREA = re.compile(
    "北京|天津|上海|重庆|河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|陕西"
    "|甘肃|青海|台湾|内蒙古|广西|西藏|宁夏|新疆|香港|澳门"
)
# What stands before an address and does not belong to it.
_LEAD = re.compile(
    r".*(?:[地住]址(?:是|为)?|住在|家住|居住在|居住于|位于|坐落于|搬[到至去]|寄[到往至]|送[到至往]|来到|到|在|是|为|于|去|从|至)"
)
_MAX_HEAD = 24
"""Characters of an address before its number, where no area tells its beginning."""

SIGN = _WESTERN_SIGN + rb"|" + _CN_SIGN


def find_addresses(view: View) -> Iterator[Span]:
    """Yield postal addresses, from the house number or the district to what follows."""
    data = view.data
    for match in _WESTERN.finditer(data):
        start, end = match.span()
        if not (start and data[start - 1] in _EDGE):
            yield Span(*view.original(start, end), "address")
    if WIDE in data:
        for match in _CN.finditer(data):
            found = _chinese(view.text, *view.original(*match.span()))
            if found:
                yield Span(*found, "address")


def _chinese(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Cut a candidate to the address in it: from the area before a road to the last unit behind its number."""
    written = text[start:end]
    digit = _FIRST_DIGIT.search(written)
    if digit is None:  # digits of another script
        return None
    number = _HOUSE_NUMBER.match(written, digit.start())
    head = written[: digit.start()]
    if number is None or not _ROAD.search(head):
        return None
    stop = number.end()
    while unit := _NEXT_UNIT.match(written, stop):
        stop = unit.end()
    return start + _begin(head), start + stop


def _begin(head: str) -> int:
    """Where an address begins in what stands before its number."""
    area = _AREA.search(head)
    if area:
        return area.start()
    floor = max(0, len(head) - _MAX_HEAD)
    lead = _LEAD.match(head, floor, max(floor, len(head) - 2))
    return lead.end() if lead else floor


NameBackend = Callable[[str], Iterable[tuple[int, int]]]
"""Text → start and end of each name, in code points. Overlaps are resolved."""

PERSON = "PERSON"
SECONDS = 10.0
"""Time limit for one text. A hold on a budget counts as abandoned after 60 s without a sign of life."""
_MOST_HANGS = 3
"""Threads that may be left hanging before the backend is not asked any more."""


def load_backend(name: str) -> NameBackend:
    """Return the backend that a profile names: ``presidio``, or ``module:function``. Raises ``PrivacyError``."""
    if name == "presidio":
        return _presidio()
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise PrivacyError(f"masking: names: {name!r}: expected presidio, or module:function")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PrivacyError(f"masking: names: {name!r} cannot be imported ({type(error).__name__})") from None
    if not callable(backend):
        raise PrivacyError(f"masking: names: {name!r} is not callable; expected a function from a text to spans")
    found: NameBackend = backend
    return found


def _presidio() -> NameBackend:
    """Presidio's analyser for English names, with the spaCy model that it is installed with."""
    try:
        from presidio_analyzer import AnalyzerEngine
    except ImportError:
        raise PrivacyError(
            "masking: names: presidio is not installed; run: pip install 'airflow-ai-provider[presidio]' "
            "and python -m spacy download en_core_web_lg"
        ) from None
    try:
        engine = AnalyzerEngine()
    except (Exception, SystemExit) as error:  # noqa: BLE001  spaCy exits the process where a model cannot be fetched
        raise PrivacyError(
            f"masking: names: presidio cannot start ({type(error).__name__}); it needs a spaCy model: "
            "python -m spacy download en_core_web_lg"
        ) from None

    def find(text: str) -> list[tuple[int, int]]:
        return [(found.start, found.end) for found in engine.analyze(text, language="en", entities=[PERSON])]

    return find


class NameFinder:
    """Asks a backend, within bounds. Safe to share between threads; texts are taken one after the other."""

    def __init__(self, backend: NameBackend, *, seconds: float = SECONDS) -> None:
        self._backend = backend
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._hangs = 0

    def find(self, text: str) -> list[Span]:
        """Return the names in a text. Raises ``PrivacyError`` if the backend fails, hangs or returns nonsense."""
        with self._lock:
            returned = self._ask(text)
        return [_span(pair, len(text)) for pair in returned]

    def _ask(self, text: str) -> list[Any]:
        if self._hangs >= _MOST_HANGS:
            raise PrivacyError("masking: names: the backend hung too often and is not asked any more; restart the task")
        worker = self._worker = self._worker or _Worker(self._backend)
        try:
            return worker.ask(text, self._seconds)
        except queue.Empty:
            self._worker, self._hangs = None, self._hangs + 1
            raise PrivacyError(f"masking: names: no answer within {self._seconds:g} s; nothing was sent") from None
        except BaseException:
            self._worker = None  # interrupted while it waited: the late answer must not be taken for the next text's
            raise


class _Worker:
    """A daemon thread that calls the backend; one that hangs is left behind and does not keep the process alive."""

    def __init__(self, backend: NameBackend) -> None:
        self._backend = backend
        self._texts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[list[Any] | str] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="airflow-ai-names", daemon=True).start()

    def ask(self, text: str, seconds: float) -> list[Any]:
        """Raises ``queue.Empty`` if there is no answer in time."""
        self._texts.put(text)
        answer = self._answers.get(timeout=seconds)
        if isinstance(answer, str):
            raise PrivacyError(f"masking: names: the backend failed ({answer}); nothing was sent")
        return answer

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            try:
                self._answers.put(list(self._backend(text)))
            except BaseException as error:  # noqa: BLE001  its message may quote the text, so only its type goes on
                self._answers.put(type(error).__name__)


def _span(pair: Any, length: int) -> Span:
    """A backend's pair as a span. Raises ``PrivacyError`` unless it lies within the text."""
    match pair:
        case (int(start), int(end)) if 0 <= start < end <= length:
            return Span(start, end, PERSON)
    raise PrivacyError("masking: names: the backend returned a span that is not within the text; nothing was sent")
