"""The kinds beyond e-mail, phone and card: what each finds, what it leaves, and what a word next to a value changes."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.policy import EntityName
from airflow_ai_provider.core.privacy.detectors import detector as detect
from airflow_ai_provider.core.privacy.detectors import text_view
from airflow_ai_provider.core.privacy.detectors.detector import GROUPS, KINDS, Detector, expand
from airflow_ai_provider.core.privacy.detectors.text_view import Gate, bytes_options
from airflow_ai_provider.errors import PrivacyError

ALL = Detector(["all"])
VALIDATED = Detector(["all"], by_word=False)


def found(text: str, detector: Detector = ALL) -> list[tuple[str, str]]:
    return [(span.entity, text[span.start : span.end]) for span in detector.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SSN 123-45-6789, 123 45 6789.", [("ssn", "123-45-6789"), ("ssn", "123 45 6789")]),
        ("ITIN 900-70-1234", [("ssn", "900-70-1234")]),
        ("my SSN is 123456789", [("ssn", "123456789")]),
        ("passport number is E12345678", [("passport", "E12345678")]),
        ("护照 EA1234567 和护照号码：G12345678", [("passport", "EA1234567"), ("passport", "G12345678")]),
        ("护照号Ｅ１２３４５６７８", [("passport", "Ｅ１２３４５６７８")]),
        ("US passport A12345678; passport: 123456789", [("passport", "A12345678"), ("passport", "123456789")]),
        ("Reisepass C01X00T47", [("passport", "C01X00T47")]),
        ("my driver's license number is F162823540116", [("driver_license", "F162823540116")]),
        ("driving licence MORGA657054SM9IJ", [("driver_license", "MORGA657054SM9IJ")]),
        ("驾照号 2270-66-1551", [("driver_license", "2270-66-1551")]),
        ("account no. 0012345678", [("bank_account", "0012345678")]),
        ("账号：6222 0200 1234 567", [("bank_account", "6222 0200 1234 567")]),
        ("routing number 021000021", [("bank_account", "021000021")]),
        ("sort code 12-34-56", [("bank_account", "12-34-56")]),
        ("车牌京A·12345，粤B12345D，沪AD12345", [("cn_plate", v) for v in ("京A·12345", "粤B12345D", "沪AD12345")]),
        ("京A1234警", [("cn_plate", "京A1234警")]),
        ("00:1A:2B:3C:4D:5E 00-1a-2b-3c-4d-5e", [("mac", "00:1A:2B:3C:4D:5E"), ("mac", "00-1a-2b-3c-4d-5e")]),
        ("001a.2b3c.4d5e", [("mac", "001a.2b3c.4d5e")]),
        (
            "see https://example.com/a?b=1, www.example.org.",
            [("url", "https://example.com/a?b=1"), ("url", "www.example.org")],
        ),
        ("(http://a.com/x_(y)) <HTTP://b.de>", [("url", "http://a.com/x_(y)"), ("url", "HTTP://b.de")]),
        ("linkedin.com/in/jdoe and example.it/x", [("url", "linkedin.com/in/jdoe"), ("url", "example.it/x")]),
        ("出生日期：1990年5月12日", [("birth_date", "1990年5月12日")]),
        ("1990年5月12日出生", [("birth_date", "1990年5月12日")]),
        ("生日１９９０－０５－１２", [("birth_date", "１９９０－０５－１２")]),
        ("born on 12 May 1990, DOB 19900512", [("birth_date", "12 May 1990"), ("birth_date", "19900512")]),
        ("date of birth: May 12th, 1990", [("birth_date", "May 12th, 1990")]),
        ("geboren am 12. März 1990", [("birth_date", "12. März 1990")]),
        ("on 2024-05-12 10:30:00 and 5/12/2024", [("date", "2024-05-12 10:30:00"), ("date", "5/12/2024")]),
        (
            "12-May-90, May 1990, 12 de mayo de 1990",
            [("date", v) for v in ("12-May-90", "May 1990", "12 de mayo de 1990")],
        ),
        ("寄到北京市朝阳区建国路88号2栋301室，谢谢", [("address", "北京市朝阳区建国路88号2栋301室")]),
        ("我住在西湖区文三路 478 号A座1201室", [("address", "西湖区文三路 478 号A座1201室")]),
        (
            "12b North Main Street, Suite 4, Springfield, IL 62704",
            [("address", "12b North Main Street, Suite 4, Springfield, IL 62704")],
        ),
        ("at 10 Downing Street, London SW1A 2AA.", [("address", "10 Downing Street, London SW1A 2AA")]),
        ("12 bis, rue de la Paix 75002 Paris", [("address", "12 bis, rue de la Paix 75002 Paris")]),
        (
            "Hauptstraße 5, 10115 Berlin; Via Roma, 12",
            [("address", "Hauptstraße 5, 10115 Berlin"), ("address", "Via Roma, 12")],
        ),
        ("my password is hunter22", [("secret", "hunter22")]),
        ("密码是hunter22，口令：abc123456", [("secret", "hunter22"), ("secret", "abc123456")]),
        ("token: a8f5f167f44f4964e6c998dee827110c", [("secret", "a8f5f167f44f4964e6c998dee827110c")]),
        ("https://u:pw@example.com/x", [("secret", "https://u:pw@example.com/x")]),
    ],
)
def test_each_kind_is_found_whole(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "passport renewal in 2024",
        "E12345678 and A1234567 without a word",
        "666-12-3456 and 123-00-4567",
        "order 2024-000123",
        "苏E买房，全新APPLE12，甲A12345",
        "2 people on the street saw 3 Cats cross the Road",
        "他买了3号电池，中山路小学3班",
        "生产日期和生效日期待定",
        "1.2.13, 13/2020, 30/02/2024",
        "done.It was foo.py, e.g. this",
        "we speak of a token economy of considerableproportions",
        "the password is reset",
        "00:1A:2B:3C:4D:5E:6F",
        "Chapter 5 Boring 1",
    ],
)
def test_what_only_looks_like_one_is_left(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("卡号 4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("身份证号：110101199003071091", "110101199003071091"),
        ("IBAN: GB29NWBK60161331926818", "GB29NWBK60161331926818"),
        ("phone no. 12345678", "12345678"),
        ("12345678 (mobile)", "12345678"),
        ("SSN 666-12-3456", "666-12-3456"),
        ("my password is hunter22", "hunter22"),
        ("passport AB-12345", "AB-12345"),
    ],
)
def test_a_value_that_fails_its_check_is_found_by_its_word_only_in_the_second_tier(text: str, value: str) -> None:
    assert [written for _, written in found(text)] == [value]
    assert found(text, VALIDATED) == []


@pytest.mark.parametrize(
    "text",
    ["account no 12345678", "护照E12345678", "born 12 May 1990", "4111 1111 1111 1111", "驾照 F1628235"],
)
def test_a_word_that_is_part_of_the_form_counts_in_both_tiers(text: str) -> None:
    assert len(found(text, VALIDATED)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("card number 212-555-0123", ("card", "212-555-0123")),
        ("driver's license 2270-66-1551", ("driver_license", "2270-66-1551")),
        ("account 2125550123", ("bank_account", "2125550123")),
        ("card 378282246310005", ("card", "378282246310005")),
        ("704 1436 Redbud Drive", None),
        ("12 345 678 EUR", None),
        ("¥12 345 678", None),
        ("call 704 1436 please", ("phone", "704 1436")),
        ("3660170548-Fax", ("phone", "3660170548")),
        ("Phone:\n91743988", ("phone", "91743988")),
    ],
)
def test_what_stands_around_a_number_decides_what_it_is(text: str, expected: tuple[str, str] | None) -> None:
    assert [item for item in found(text) if item[0] != "address"] == ([expected] if expected else [])


def test_a_masked_card_number_leaves_no_part_of_it_behind() -> None:
    """A mistyped number behind its word is one value, even where its end alone reads as a phone number."""
    assert found("卡号：6222 0200 1234 567") == [("card", "6222 0200 1234 567")]


def test_the_policy_knows_every_kind_and_group() -> None:
    assert set(get_args(EntityName)) == {*KINDS, *GROUPS}


def test_groups_stand_for_their_kinds() -> None:
    assert expand(["all"]) == set(KINDS)
    assert expand(["standard", "url"]) == set(KINDS) - {"date"}
    with pytest.raises(PrivacyError, match=r"unknown detector 'diagnosis', 'mail': expected some of standard, all, "):
        expand(["mail", "diagnosis", "email"])


PIECES = (
    "1 12 1234 - / . : :: @ a a@b.co 2024 1990-05-12 13812345678 +86 (212) 555-0123 4111111111111111 GB29 NWBK A "
    "E1234567 护照 出生 年 月 日 生日 路 号 88 室 京A 12345 北京 密码 是 卡号 电话 passport born May SSN 123-45-6789 "
    "token secret password = is key Street Main rue via box St straße 5 http:// www. .com/ x sk- eyJ 00:1a:2b:3c:4d:5e "
    "１ \u200b é ( ) , ， 。"
).split(" ")


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, " ", " ", "\n"]), max_size=16).map("".join) | st.text(max_size=40))
def test_no_sign_hides_what_its_finder_would_find(text: str) -> None:
    """The gate runs only finders whose sign is in the text: that must be every finder that finds something."""
    view = text_view.view(text)
    everything: list[object] = []
    for scan in ALL._scanners:
        everything += scan(view)
    assert sorted(ALL.candidates(view)) == sorted(everything)  # type: ignore[type-var]


def test_a_search_that_gives_up_opens_every_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """RE2 answers "no match" when it runs out of memory; that must not read as "nothing personal"."""
    options = bytes_options()
    options.max_mem = 1 << 16
    text = b"ab" * 5000
    gate = Gate([rb"[ab]{1,9}a[ab]{20}c", rb"zzz"], options)
    assert list(gate.open_for(text)) in ([], [0, 1])

    class GaveUp:
        def Match(self, _: bytes) -> None:
            return None

    monkeypatch.setattr(ALL._gate, "_set", GaveUp())
    assert found("a@example.com") == [("email", "a@example.com")]


def test_every_kind_stands_in_the_register_once_for_each_way_to_find_it() -> None:
    numbers = [kind for finders in KINDS.values() for kind in finders if not isinstance(kind, detect.Finder)]
    assert sorted(map(id, numbers)) == sorted(map(id, detect.numbers.NUMBER_KINDS))
