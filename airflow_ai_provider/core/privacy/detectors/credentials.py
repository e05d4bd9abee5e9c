"""Secrets that are written for machines: API keys of known vendors, tokens, private keys, credentials in URLs.

The prefixes are those that the vendors document. A key with a known prefix is found whatever follows it looks like;
passwords are found only where an assignment names them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from airflow_ai_provider.core.privacy.detectors.text_view import LETTER, WIDE, Span, View, compile_bytes

_ALNUM = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}

_KEYS = compile_bytes(
    b"|".join(
        (
            rb"sk-[A-Za-z0-9_-]{16,}",  # OpenAI, Anthropic (sk-ant-), OpenRouter, DeepSeek, LiteLLM
            rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS access key id
            rb"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}",
            rb"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}",  # Slack
            rb"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{20,}",
            rb"AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{20,}|ya29\.[A-Za-z0-9_-]{20,}",  # Google
            rb"gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[A-Za-z0-9_.-]{20,}",  # GitLab
            rb"hf_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{30,}|r8_[A-Za-z0-9]{30,}|xai-[A-Za-z0-9]{30,}",
            rb"pplx-[A-Za-z0-9]{30,}|nvapi-[A-Za-z0-9_-]{30,}|tvly-[A-Za-z0-9-]{20,}|lsv2_[a-z]{2}_[A-Za-z0-9_]{30,}",
            rb"npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|rubygems_[a-f0-9]{48}",
            rb"do[opr]_v1_[a-f0-9]{64}|dapi[a-f0-9]{32}|hvs\.[A-Za-z0-9_-]{20,}|glsa_[A-Za-z0-9]{32}_[a-f0-9]{8}",
            rb"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}|key-[a-f0-9]{32}",  # SendGrid, Mailgun
            rb"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{24,}|sq0[a-z]{3}-[A-Za-z0-9_-]{22,}",
            rb"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|ATATT3[A-Za-z0-9_=-]{30,}|PMAK-[a-f0-9]{24}-[a-f0-9]{34}",
            rb"LTAI[A-Za-z0-9]{12,26}|AKID[A-Za-z0-9]{13,40}",  # Alibaba Cloud, Tencent Cloud
            rb"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram bot
            rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # JWT
            rb"AGE-SECRET-KEY-1[A-Z0-9]{58}|lin_api_[A-Za-z0-9]{32,}|figd_[A-Za-z0-9_-]{32,}|dp\.pt\.[A-Za-z0-9]{40,}",
            rb"AKLT[A-Za-z0-9]{20,}|bce-v3/ALTAK-[A-Za-z0-9/]{30,}|(?:AC|SK)[a-f0-9]{32}",  # Volcengine, Baidu, Twilio
            rb"sntry[su]_[A-Za-z0-9+/=_-]{32,}|secret_[A-Za-z0-9]{40,}|vercel_[A-Za-z0-9]{20,}|ntn_[A-Za-z0-9]{40,}",
        )
    )
)
_PRIVATE_KEY = compile_bytes(rb"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_END = re.compile(rb"-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
# A password in a URL may hold anything but a blank or a slash; brackets are left to IPv6 hosts.
_URL = compile_bytes(rb"[A-Za-z][A-Za-z0-9+.-]*://(?:[!-.0-9;-Z^-~]*:[!-.0-Z^-~\xe0]+|[A-Za-z0-9_.-]{16,})@[!-~\xe0]+")
_URL_TRAILING = b".,;:!?)'\"]}>`"
_ASSIGNMENT = compile_bytes(
    rb"(?i:password|passwd|pwd|passphrase|secret(?:[_-]?(?:access[_-]?)?key)?|api[_-]?key|access[_-]?key|"
    rb"account[_-]?key|auth[_-]?token|access[_-]?token|client[_-]?secret)"
    rb"[\"']? ?[=:] ?[\"']?[!#-&(-+\--:<-Z^-~]{6,}"
)
_BEARER = compile_bytes(rb"(?i:bearer|basic) [A-Za-z0-9._~+/=-]{20,}")
# A long random token behind a word for one: the word alone, or the token alone, would say little.
_NAMED = compile_bytes(
    rb"(?i:token|secret|credentials?|(?:api|access|private|signing|encryption|licen[cs]e)[ _-]?key|signature)"
    rb"(?: is| was| value)?[ :=\"'`(]{1,4}[A-Za-z0-9+/=_-]{20,}"
)
_RANDOM = re.compile(rb"[A-Za-z0-9+/=_-]{20,}$")
_BITS = 3.2
"""Shannon entropy per character from which a token counts as random: hexadecimal has at most 4, English words have
less than 3 in runs of this length."""
# "my password is hunter2", 密码是hunter2: told, not assigned.
_TOLD = compile_bytes(
    rb"(?i:password|passwd|passphrase|passcode|pin code)(?: is| was| for [a-z]{1,12} is)(?: now)?:? "
    rb"[\"'`]?[!#-&(-+\--Z^-~]{4,64}"
    rb"|\xc0{2,3}[\xc0 :=]{0,3}[\"'`]?[!#-&(-+\--Z^-~]{6,64}"
)
_TOLD_VALUE = re.compile(rb"(?<=[ :=\"'`\xc0])[!#-&(-+\--9;<>-Z^-~][!#-&(-+\--Z^-~]{3,63}$")
_TOLD_WORDS = re.compile("密码|密碼|口令|密钥|令牌|暗号")
SIGN = (
    rb"sk-[A-Za-z0-9_-]{3}|A[KSBC][IC]A[A-Z0-9]|gh[pousr]_|github_pat_|xox[a-z]-|xapp-|hooks\.slack|AIza|GOCSPX-|ya29\."
    rb"|gl[a-z]{2,5}-|hf_|gsk_|r8_|xai-|pplx-|nvapi-|tvly-|lsv2_|npm_|pypi-|rubygems_|do[opr]_v1_|dapi[a-f0-9]|hvs\."
    rb"|glsa_|SG\.|key-[a-f0-9]|[srp]k_(?:live|test)_|whsec_|sq0|shp[acps]|ATATT3|PMAK-|LTAI|AKID|[0-9]:AA|eyJ"
    rb"|AGE-SECRET|lin_api_|figd_|dp\.pt\.|AKLT|bce-v3|(?:AC|SK)[a-f0-9]|sntry|vercel_|ntn_|PRIVATE KEY|://[^/ ]*@"
    rb"|(?i:passw|pwd|passphrase|passcode|pin code|secret|token|credential|signature|bearer |basic )"
    rb"|(?i:api|access|account|private|signing|encryption|licen[cs]e)[ _-]?[Kk]|[\xc0][ :=]{0,3}[\"'`]?[!-~]{6}"
)
"""Where none of these is, there is no secret."""
_VALUE = re.compile(rb"[\"']? ?[=:] ?[\"']?")


def find_secrets(view: View, *, by_word: bool) -> Iterator[Span]:
    """Yield secrets. A URL with credentials is one span, so that user, password and host go together.

    ``by_word`` also finds a password in a sentence that tells it.
    """
    for start, end in _all(view.data):
        if end > start:
            yield Span(*view.original(start, end), "secret")
    if by_word:
        for start, end in _told(view):
            yield Span(*view.original(start, end), "secret")


def _told(view: View) -> Iterator[tuple[int, int]]:
    for match in _TOLD.finditer(view.data):
        value = _TOLD_VALUE.search(match.group())
        if value is None or not any(48 <= char <= 57 for char in value.group()):
            continue
        if match.group()[0] == WIDE:
            first, last = view.original(*match.span())
            if not _TOLD_WORDS.search(view.text, max(0, first - 4), last):
                continue
        yield match.start() + value.start(), match.start() + value.start() + len(value.group().rstrip(b".,;:!?"))


def _named(data: bytes) -> Iterator[tuple[int, int]]:
    for match in _NAMED.finditer(data):
        value = _RANDOM.search(match.group())
        if value and _is_random(value.group()):
            yield match.start() + value.start(), match.end()


def _is_random(token: bytes) -> bool:
    """Letters and digits, as mixed as chance mixes them."""
    if not (re.search(rb"[0-9]", token) and re.search(rb"[A-Za-z]", token)):
        return False
    shares = [count / len(token) for count in Counter(token).values()]
    return -sum(share * math.log2(share) for share in shares) >= _BITS


def _all(data: bytes) -> Iterator[tuple[int, int]]:
    for match in _KEYS.finditer(data):
        if not (match.start() and data[match.start() - 1] in _ALNUM):
            yield match.span()
    if b"PRIVATE KEY" in data:
        yield from _private_keys(data)
    if b"://" in data and b"@" in data:
        for match in _URL.finditer(data):
            yield match.start(), match.start() + len(match.group().rstrip(_URL_TRAILING))
    if b"=" in data or b":" in data:
        yield from _assigned(data)
    yield from _named(data)
    if b"uthorization" in data or b"AUTHORIZATION" in data or b"earer " in data:
        for match in _BEARER.finditer(data):
            yield data.index(b" ", match.start()) + 1, match.end()


def _private_keys(data: bytes) -> Iterator[tuple[int, int]]:
    """A key without its end is masked to the end of the text."""
    position = 0
    for match in _PRIVATE_KEY.finditer(data):
        if match.start() < position:
            continue
        closing = _PRIVATE_KEY_END.search(data, match.end())
        position = closing.end() if closing else len(data)
        yield match.start(), position


def _assigned(data: bytes) -> Iterator[tuple[int, int]]:
    """The value behind ``password=`` and the like. After a colon it must hold a digit: prose has colons too."""
    for match in _ASSIGNMENT.finditer(data):
        sign = _VALUE.search(data, match.start(), match.end())
        if sign is None:
            continue
        value = data[sign.end() : match.end()].rstrip(b".")
        if b"=" in sign.group() or any(48 <= char <= 57 for char in value):
            yield sign.end(), sign.end() + len(value)
