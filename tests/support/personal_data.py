"""Personal values in the forms people write them in, made with seeded chance; every one is valid and nobody's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Digits are drawn for #; 2-9 for N. One or more ways of writing for each country.
PHONES = {
    "US": ["(NNN) NNN-####", "NNN-NNN-####", "NNN.NNN.####", "+1 NNN NNN ####", "1-NNN-NNN-####x###", "NNNNNN####"],
    "GB": ["+44 20 #### ####", "020 #### ####", "07### ######", "+44 (0)7### ######", "(01##) ### ####"],
    "DE": ["+49 30 ########", "030 ########", "0151 ########", "+49 (0) 89 #######", "0341/#######"],
    "FR": ["+33 6 ## ## ## ##", "06 ## ## ## ##", "01.##.##.##.##", "06########"],
    "ES": ["+34 6## ### ###", "6## ### ###", "+34 9########"],
    "IT": ["+39 06 #### ####", "+39 3## #######", "06 ########"],
    "NL": ["+31 6 ########", "06-########", "020-#######"],
    "SE": ["+46 70 ### ## ##", "070-### ## ##", "08-### ### ##"],
    "NO": ["+47 ### ## ###", "### ## ###"],
    "DK": ["+45 ## ## ## ##", "## ## ## ##"],
    "PL": ["+48 ### ### ###", "### ### ###"],
    "CH": ["+41 44 ### ## ##", "044 ### ## ##"],
    "PT": ["+351 9## ### ###", "9## ### ###"],
    "BR": ["+55 11 9####-####", "(11) 9####-####", "21 ####-####"],
    "RU": ["+7 9## ###-##-##", "8 (9##) ###-##-##"],
    "IN": ["+91 9#### #####", "9#### #####", "7#########"],
    "JP": ["+81 3-####-####", "03-####-####", "090-####-####"],
    "KR": ["+82 10-####-####", "010-####-####"],
    "AU": ["+61 4## ### ###", "04## ### ###", "(02) #### ####"],
    "SG": ["+65 6### ####", "6### ####"],
    "HK": ["+852 9### ####", "9### ####"],
    "LT": ["+(370) ########"],
    "HU": ["06-30/### ####", "(36)/###-####"],
    "CN": ["13N########", "15N-####-####", "18N ### #####", "+86 17N########", "0086-19N-####-####", "010-NNN#####"],
}
EXTENSIONS = ["", "", "", " ext. ##", "x###", "转##"]
CARDS = {
    "visa": ("4", 16),
    "visa 13": ("4", 13),
    "visa 19": ("4", 19),
    "mastercard": ("5#", 16),
    "mastercard 2": ("2300", 16),
    "amex": ("37", 15),
    "diners": ("36", 14),
    "discover": ("6011", 16),
    "jcb": ("3528", 16),
    "jcb 15": ("2131", 15),
    "maestro": ("6304", 12),
    "unionpay": ("62", 16),
    "unionpay 18": ("62", 18),
    "unionpay 19": ("6222", 19),
}
AREAS = ["110101", "310115", "440305", "330106", "510104", "610113"]
FULL_WIDTH = str.maketrans("0123456789X-@.", "０１２３４５６７８９Ｘ－＠．")
ENGLISH_FRAMES = [
    "{}",
    "My number is {}.",
    "please use {} from now on",
    "a,{},b",
    "log: value={} status=ok",
    "({})",
    "“{}”",
]
CHINESE_FRAMES = [
    "{}",
    "请联系{}处理。",
    "客户信息：{}，请核对",
    "（{}）",
    "“{}”",
    "他说{}是对的",
    "备注\n{}\n结束",
    "号码是{}吗？",
]


@dataclass(frozen=True)
class Made:
    """A value in a text."""

    kind: str
    form: str
    text: str
    start: int
    end: int


def drawn(rng: random.Random, form: str) -> str:
    return "".join(str(rng.randint(0, 9)) if c == "#" else str(rng.randint(2, 9)) if c == "N" else c for c in form)


def luhn_checked(digits: str) -> str:
    """Digits with their check digit, worked out as the standard says it: doubled from the right, cross sums."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        doubled = int(digit) * 2 if position % 2 == 0 else int(digit)
        total += doubled - 9 if doubled > 9 else doubled
    return digits + str(-total % 10)


def card(rng: random.Random, prefix: str, length: int) -> str:
    head = drawn(rng, prefix)
    return luhn_checked(head + "".join(str(rng.randint(0, 9)) for _ in range(length - 1 - len(head))))


def cn_id(rng: random.Random) -> str:
    body = f"{rng.choice(AREAS)}{rng.randint(1930, 2009)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    body += f"{rng.randint(0, 999):03}"
    weights = [2 ** (17 - index) % 11 for index in range(17)]  # GB 11643: powers of two modulo 11
    rest = sum(int(digit) * weight for digit, weight in zip(body, weights, strict=True)) % 11
    return body + "10X98765432"[rest]


def cn_mobile(rng: random.Random) -> str:
    return drawn(rng, f"1{rng.randint(3, 9)}#########")


def grouped(value: str, separator: str, size: int = 4) -> str:
    return separator.join(value[index : index + size] for index in range(0, len(value), size))


def split(value: str, separator: str, first: int, second: int) -> str:
    return separator.join((value[:first], value[first:second], value[second:]))


def phones(rng: random.Random) -> Iterator[Made]:
    for country, forms in PHONES.items():
        for form in forms:
            value = drawn(rng, form)
            if country in ("US", "GB") and not form.endswith("###x###"):
                value += drawn(rng, rng.choice(EXTENSIONS)) if form[-1] == "#" and " " in form else ""
            yield framed(rng, "phone", f"{country} {form}", value, ENGLISH_FRAMES)


def cards(rng: random.Random) -> Iterator[Made]:
    for name, (prefix, length) in CARDS.items():
        for separator in ("", " ", "-"):
            value = card(rng, prefix, length)
            yield framed(rng, "card", f"{name} {separator!r}", grouped(value, separator), ENGLISH_FRAMES)


def chinese(rng: random.Random) -> Iterator[Made]:
    """The kinds a Chinese bank meets, in every disguise."""
    forms: list[tuple[str, str, Callable[[], str]]] = [
        ("phone", "bare", lambda: cn_mobile(rng)),
        ("phone", "dashes", lambda: split(cn_mobile(rng), "-", 3, 7)),
        ("phone", "spaces", lambda: split(cn_mobile(rng), " ", 3, 7)),
        ("phone", "dots", lambda: split(cn_mobile(rng), ".", 3, 7)),
        ("phone", "country", lambda: "+86" + cn_mobile(rng)),
        ("phone", "country, dash", lambda: "+86-" + cn_mobile(rng)),
        ("phone", "full width", lambda: cn_mobile(rng).translate(FULL_WIDTH)),
        ("phone", "zero width", lambda: "\u200b".join(cn_mobile(rng))),
        ("phone", "landline", lambda: drawn(rng, "0755-8#######")),
        ("phone", "landline, extension", lambda: drawn(rng, "021-6#######转80#")),
        ("cn_id", "bare", lambda: cn_id(rng)),
        ("cn_id", "small x", lambda: cn_id(rng).lower()),
        ("cn_id", "groups", lambda: split(cn_id(rng), " ", 6, 14)),
        ("cn_id", "dashes", lambda: split(cn_id(rng), "-", 6, 14)),
        ("cn_id", "full width", lambda: cn_id(rng).translate(FULL_WIDTH)),
        ("cn_id", "zero width", lambda: split(cn_id(rng), "\u200b", 6, 14)),
        ("card", "bare", lambda: card(rng, "6217", 19)),
        ("card", "groups", lambda: grouped(card(rng, "6228", 19), " ")),
        ("card", "dashes", lambda: grouped(card(rng, "6222", 19), "-")),
        ("card", "full width", lambda: card(rng, "6225", 16).translate(FULL_WIDTH)),
        ("email", "plus", lambda: drawn(rng, "li.wei+tag##@corp.example.cn")),
        ("email", "full-width at", lambda: drawn(rng, "wang###＠example.com")),
        ("ip", "bare", lambda: ".".join(str(rng.randint(1, 254)) for _ in range(4))),
        ("passport", "named", lambda: drawn(rng, "护照号E########")),
        ("passport", "two letters", lambda: drawn(rng, "护照号码：EA#######")),
        ("cn_plate", "bare", lambda: f"京{rng.choice('ABCDEF')}" + drawn(rng, "#####")),
        ("cn_plate", "dot, electric", lambda: f"粤{rng.choice('ABCDEF')}·D" + drawn(rng, "#####")),
        ("bank_account", "named", lambda: drawn(rng, "账号：1############")),
    ]
    for kind, form, make in forms:
        value = make()
        skip = next((index for index, char in enumerate(value) if char.isascii() and char.isalnum()), 0)
        made = framed(rng, kind, form, value, CHINESE_FRAMES)
        # What names the value is no part of it.
        yield Made(kind, form, made.text, made.start + (skip if kind in ("passport", "bank_account") else 0), made.end)


def framed(rng: random.Random, kind: str, form: str, value: str, frames: list[str]) -> Made:
    frame = rng.choice(frames)
    start = frame.index("{}")
    return Made(kind, form, frame.replace("{}", value), start, start + len(value))
