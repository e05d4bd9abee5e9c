"""The sample data of the demo keeps its promises.

What the demo shows about masking rests on two claims checked here: every personal value in an inquiry is listed in
``planted.json``, and every listed value is a well-formed one that a detector can be held to. The checks use the
standard library alone, so that they do not share a mistake with the detectors of the package.
"""

from __future__ import annotations

import csv
import ipaddress
import json
import re
import unicodedata
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARTICLES = sorted((ROOT / "include" / "knowledge").glob("*.md"))
COLUMNS = ["inquiry_id", "received_at", "channel", "language", "customer_name", "difficulty", "text"]
ENTITIES = {"email", "phone", "card", "cn_id", "iban", "ip", "person"}
HAN = re.compile(r"[\u4e00-\u9fff]")

# Wider than any detector should be: a text without planted values must not even come near one.
SUSPICIOUS = {
    "an e-mail address": re.compile(r"@"),
    "a long number": re.compile(r"\d(?:[ ()./-]{0,2}\d){6,}"),
    "an IBAN": re.compile(r"(?<![A-Z])[A-Z]{2}\d{2} ?[A-Z0-9]{4}"),
    "an IP address": re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{1,4}::?[0-9a-fA-F]{1,4}:"),
}


def read_inquiries() -> list[dict[str, str]]:
    """All rows of the sample inquiries, as text."""
    with (ROOT / "include" / "inquiries.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def read_planted() -> dict[str, list[dict[str, str]]]:
    """Planted values by inquiry."""
    planted: dict[str, list[dict[str, str]]] = json.loads((ROOT / "tests" / "data" / "planted.json").read_text("utf-8"))
    return planted


INQUIRIES = read_inquiries()
PLANTED = read_planted()
VALUES = [
    pytest.param(inquiry_id, item["entity"], item["value"], id=f"{inquiry_id}-{item['entity']}-{place}")
    for inquiry_id, items in PLANTED.items()
    for place, item in enumerate(items)
]


def plain(value: str) -> str:
    """``value`` with full-width forms folded and separators dropped."""
    return re.sub(r"[\s()-]", "", unicodedata.normalize("NFKC", value))


def luhn_valid(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = "0246813579"
    return sum(int(doubled[int(d)] if i % 2 else d) for i, d in enumerate(reversed(digits))) % 10 == 0


def resident_id_valid(number: str) -> bool:
    """GB 11643-1999: a real birth date and the check character of ISO 7064 MOD 11-2."""
    if not re.fullmatch(r"\d{17}[\dX]", number):
        return False
    try:
        datetime.strptime(number[6:14], "%Y%m%d")
    except ValueError:
        return False
    total = sum((10 if c == "X" else int(c)) * pow(2, 17 - i, 11) for i, c in enumerate(number))
    return total % 11 == 1


def iban_valid(iban: str) -> bool:
    """ISO 13616: ISO 7064 MOD 97-10 over the rearranged characters."""
    if not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", iban):
        return False
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def well_formed(entity: str, value: str, customer_name: str) -> bool:
    """Whether ``value`` is what ``entity`` says, by its own checksum or reserved range where there is one."""
    match entity:
        case "email":
            return re.fullmatch(r"[a-z0-9._-]+@example\.(com|org|net)", value) is not None
        case "phone":
            return re.fullmatch(r"\+?\d{10,14}", plain(value)) is not None
        case "card":
            return 13 <= len(plain(value)) <= 19 and luhn_valid(plain(value))
        case "cn_id":
            return resident_id_valid(plain(value))
        case "iban":
            return iban_valid(plain(value))
        case "ip":
            return is_ip(value)
        case "person":
            return value.casefold() == customer_name.casefold()
    return False


def front_matter(path: Path) -> tuple[dict[str, str], str]:
    """Fields and body of one article; its front matter is flat ``key: value`` lines."""
    _, head, body = path.read_text("utf-8").split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in head.strip().splitlines())
    return fields, body


def sentences(body: str) -> list[str]:
    """Sentences outside headings."""
    prose = " ".join(line for line in body.splitlines() if not line.startswith("#"))
    return [s for s in re.split(r"(?<=[。？！])|(?<=[.?!])\s", prose) if s.strip()]


# ---------------------------------------------------------------------------------------------- inquiries


def test_inquiries_have_the_documented_columns_and_ids() -> None:
    """150 rows, numbered without gaps, in the order in which they came."""
    assert list(INQUIRIES[0]) == COLUMNS
    assert [row["inquiry_id"] for row in INQUIRIES] == [f"INQ-{n:04d}" for n in range(1, 151)]
    received = [datetime.strptime(row["received_at"], "%Y-%m-%dT%H:%M:%SZ") for row in INQUIRIES]
    assert received == sorted(received)


def test_inquiry_file_follows_rfc_4180() -> None:
    """CRLF ends every record, there is no byte-order mark, and some quoted texts hold line breaks and quotes."""
    raw = (ROOT / "include" / "inquiries.csv").read_bytes()
    assert raw.startswith(b"inquiry_id,")
    assert raw.count(b"\r\n") == len(INQUIRIES) + 1
    assert any("\n" in row["text"] for row in INQUIRIES)
    assert any('"' in row["text"] for row in INQUIRIES)


def test_inquiries_are_mixed_as_documented() -> None:
    """About 60/40 English and Chinese, about 70/30 simple and complex, all channels in use."""
    assert Counter(row["language"] for row in INQUIRIES) == {"en": 90, "zh": 60}
    assert Counter(row["difficulty"] for row in INQUIRIES) == {"simple": 105, "complex": 45}
    assert {row["channel"] for row in INQUIRIES} == {"app", "email", "phone", "branch", "wechat"}


def test_inquiry_texts_are_distinct_and_of_natural_length() -> None:
    texts = [row["text"] for row in INQUIRIES]
    assert len(set(texts)) == len(texts)
    for row in INQUIRIES:
        if row["language"] == "en":
            assert 20 <= len(row["text"].split()) <= 120, row["inquiry_id"]
        else:
            assert 30 <= len(row["text"]) <= 200, row["inquiry_id"]
            assert len(HAN.findall(row["text"])) >= 25, row["inquiry_id"]


# ---------------------------------------------------------------------------------------------- planted values


def test_more_than_a_third_of_the_inquiries_hold_personal_data() -> None:
    """Every entity is there several times, and some rows hold two to four values."""
    assert len(PLANTED) >= 56
    assert len(PLANTED) * 3 > len(INQUIRIES)
    per_entity = Counter(item["entity"] for items in PLANTED.values() for item in items)
    assert set(per_entity) == ENTITIES
    assert min(per_entity.values()) >= 7
    per_row = Counter(len(items) for items in PLANTED.values())
    assert set(per_row) <= {1, 2, 3, 4}
    assert per_row[2] + per_row[3] + per_row[4] >= 10


@pytest.mark.parametrize(("inquiry_id", "entity", "value"), VALUES)
def test_planted_value_is_well_formed_and_in_its_text(inquiry_id: str, entity: str, value: str) -> None:
    row = next(row for row in INQUIRIES if row["inquiry_id"] == inquiry_id)
    assert row["text"].count(value) == 1
    assert well_formed(entity, value, row["customer_name"])


def test_planted_values_cover_the_hard_surface_forms() -> None:
    """Full-width digits, Han neighbours, brackets and names in another case."""
    text = {row["inquiry_id"]: row["text"] for row in INQUIRIES}
    name = {row["inquiry_id"]: row["customer_name"] for row in INQUIRIES}
    found = [(k, item["entity"], item["value"]) for k, items in PLANTED.items() for item in items]
    full_width = [v for _, _, v in found if re.search(r"[０-９]", v)]
    beside_han = [
        v for k, _, v in found if re.search(rf"[\u4e00-\u9fff]{re.escape(v)}|{re.escape(v)}[\u4e00-\u9fff]", text[k])
    ]
    bracketed = [v for k, _, v in found if re.search(rf"[(\[（【]{re.escape(v)}[)\]）】]", text[k])]
    other_case = [v for k, entity, v in found if entity == "person" and v != name[k]]
    assert len(full_width) >= 3
    assert len(beside_han) >= 10
    assert len(bracketed) >= 4
    assert len(other_case) >= 3
    assert any("-" in v for _, e, v in found if e == "card")
    assert any(" " in v for _, e, v in found if e == "card")
    assert any(v.isdigit() for _, e, v in found if e == "card")
    assert {4, 6} == {ipaddress.ip_address(v).version for _, e, v in found if e == "ip"}


@pytest.mark.parametrize("row", INQUIRIES, ids=lambda row: row["inquiry_id"])
def test_no_personal_data_besides_the_planted_values(row: dict[str, str]) -> None:
    """Without its planted values a text holds nothing like an identifier, and no part of the customer's name."""
    rest = row["text"]
    for item in PLANTED.get(row["inquiry_id"], []):
        rest = rest.replace(item["value"], " … ")
    folded = unicodedata.normalize("NFKC", rest)
    for what, pattern in SUSPICIOUS.items():
        assert not pattern.search(folded), what
    name = row["customer_name"]
    assert name.casefold() not in rest.casefold()
    for part in re.findall(r"\w+", name):
        assert HAN.search(part) or not re.search(rf"\b{part}\b", rest, re.IGNORECASE), part


def test_no_inquiry_names_another_customer() -> None:
    names = [row["customer_name"].casefold() for row in INQUIRIES]
    for row in INQUIRIES:
        others = [name for name in names if name != row["customer_name"].casefold()]
        assert not [name for name in others if name in row["text"].casefold()], row["inquiry_id"]


# ---------------------------------------------------------------------------------------------- articles


def test_there_are_enough_articles_in_both_languages() -> None:
    languages = Counter(front_matter(path)[0]["language"] for path in ARTICLES)
    assert len(ARTICLES) >= 30
    assert languages["en"] >= 18
    assert languages["zh"] >= 12


@pytest.mark.parametrize("path", ARTICLES, ids=lambda path: path.name)
def test_article_has_front_matter_headings_and_quotable_sentences(path: Path) -> None:
    fields, body = front_matter(path)
    assert list(fields) == ["title", "language", "category"]
    assert all(fields.values())
    assert fields["language"] == ("zh" if path.name.endswith(".zh.md") else "en")
    assert body.strip().startswith(f"# {fields['title']}\n")
    assert body.count("\n## ") >= 2
    prose = "\n".join(line for line in body.splitlines() if not line.startswith("#"))
    if fields["language"] == "en":
        assert 120 <= len(prose.split()) <= 350
    else:
        assert 250 <= len(re.sub(r"\s", "", prose)) <= 600
        assert len(HAN.findall(prose)) >= 200
    assert len(sentences(body)) >= 3


def test_article_titles_are_unique() -> None:
    titles = [front_matter(path)[0]["title"] for path in ARTICLES]
    assert len(set(titles)) == len(titles)


def test_articles_hold_no_personal_data() -> None:
    """No planted value stands in the knowledge base, nor anything that looks like one."""
    library = unicodedata.normalize("NFKC", "\n".join(path.read_text("utf-8") for path in ARTICLES))
    for items in PLANTED.values():
        for item in items:
            assert unicodedata.normalize("NFKC", item["value"]).casefold() not in library.casefold(), item["entity"]
    for what, pattern in SUSPICIOUS.items():
        assert not pattern.search(library), what


# ---------------------------------------------------------------------------------------------- prompt


def test_prompt_is_short_and_reads_the_documented_columns() -> None:
    """The template names the three columns, and keeps passages and question apart from the instructions."""
    prompt = (ROOT / "include" / "prompts" / "support.j2").read_text("utf-8")
    assert len(prompt.splitlines()) < 15
    assert set(re.findall(r"\b(text|language|context)\b(?=[ }])", " ".join(re.findall(r"{{.*?}}", prompt)))) == {
        "text",
        "language",
        "context",
    }
    for tag in ("<context>", "</context>", "<question>", "</question>"):
        assert prompt.count(tag) == 1, "the instructions must not hold the tags that delimit the data"
    assert re.search(r"<context>\s*{{ context }}\s*</context>\s*<question>\s*{{ text }}\s*</question>", prompt)
