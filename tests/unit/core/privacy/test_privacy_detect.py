from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.detectors.detector import Detector
from airflow_ai_provider.core.privacy.detectors.text_view import Span, resolve
from airflow_ai_provider.errors import PrivacyError

ALL = Detector(["standard"])


def found(text: str, detector: Detector = ALL) -> list[tuple[str, str]]:
    return [(span.entity, text[span.start : span.end]) for span in detector.find(text)]


@pytest.mark.parametrize(
    ("entity", "value"),
    [
        ("email", "wang.li+tag@mail.example.co.uk"),
        ("email", "o'brien@example.com"),
        ("email", "wang360＠qq.com"),
        ("email", "müller@bücher.example"),
        ("email", "user@xn--bcher-kva.example"),
        ("phone", "13812345678"),
        ("phone", "138-1234-5678"),
        ("phone", "138 1234 5678"),
        ("phone", "1 3 8 1 2 3 4 5 6 7 8"),
        ("phone", "１３８１２３４５６７８"),
        ("phone", "138·1234·5678"),
        ("phone", "138\u200b1234\u200b5678"),
        ("phone", "+86 138 1234 5678"),
        ("phone", "(+86)13812345678"),
        ("phone", "008613812345678"),
        ("phone", "86-138-1234-5678"),
        ("phone", "010-62345678"),
        ("phone", "（０１０）６２３４５６７８"),
        ("phone", "0755-86012345-8012"),
        ("phone", "0755-86012345转8012"),
        ("phone", "0571 8765 4321 分机 12"),
        ("phone", "(212) 555-0123"),
        ("phone", "212-555-0123"),
        ("phone", "212.555.0123"),
        ("phone", "+1-212-555-0123x99"),
        ("phone", "1 (212) 555-0123 ext. 7"),
        ("phone", "2125550123"),
        ("phone", "+44 (0)20 7946 0958"),
        ("phone", "+33 1 23 45 67 89"),
        ("phone", "020 7946 0958"),
        ("phone", "01 23 45 67 89"),
        ("phone", "555-0123"),
        ("card", "4111111111111111"),
        ("card", "4111 1111 1111 1111"),
        ("card", "3782-822463-10005"),
        ("card", "6200 0000 0000 0000 018"),
        ("card", "４１１１１１１１１１１１１１１１"),
        ("cn_id", "11010119900307109X"),
        ("cn_id", "11010119900307109x"),
        ("cn_id", "110101 19900307 109X"),
        ("cn_id", "110101-1990-0307-109X"),
        ("cn_id", "１１０１０１１９９００３０７１０９Ｘ"),
        ("cn_id", "110101900307123"),
        ("iban", "GB29NWBK60161331926819"),
        ("iban", "GB29 NWBK 6016 1331 9268 19"),
        ("iban", "de89370400440532013000"),
        ("ip", "192.168.1.1"),
        ("ip", "2001:db8::8a2e:370:7334"),
        ("ip", "fe80::1%eth0"),
        ("secret", "sk-ant-api03-abcdefghijklmnop_qrstuv"),
        ("secret", "sk-proj-Abcdefghijklmnop1234"),
        ("secret", "AKIAIOSFODNN7EXAMPLE"),
        ("secret", "ghp_" + "a1B2" * 9),
        ("secret", "github_pat_" + "a1B2c3" * 6),
        ("secret", "xoxb-123456789012-abcdefghijkl"),
        ("secret", "AIza" + "Sy0_-" * 7),
        ("secret", "glpat-abcdefghij0123456789"),
        ("secret", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP"),
        ("secret", "postgresql://app:hunter2@db.example.com:5432/crm?sslmode=require"),
        ("secret", "redis://:s3cret@10.0.0.1:6379/0"),
        ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIEpA\n-----END RSA PRIVATE KEY-----"),
    ],
)
@pytest.mark.parametrize("frame", ["{}", "请联系{}处理。", "see: {} today", "（{}）", "({}), [{}]", "“{}”；"])
def test_a_value_is_found_whole_in_any_surroundings(entity: str, value: str, frame: str) -> None:
    """Han characters, brackets and marks of either width are edges; blanks and sentence ends are not taken in."""
    text = frame.replace("{}", value)
    assert found(text) == [(entity, value)] * frame.count("{}")


@pytest.mark.parametrize(
    "text",
    [
        "order 20240115138123456789 shipped",
        "order A13812345678 and 13812345678B",
        "sku AB-9912 in 2024-01-15 10:30:00, 15/01/2024, 2023-2024",
        "0.13812345678 and ¥13812345678.50 of 13812345678.50",
        "in 2024 we sold 1,234,567 units at $2125550123",
        "std::vector<int> at 12:30:45, ratio 16:9, a::b",
        "user@localhost @handle a@@b.com foo@bar",
        "https://example.com:8080/path?x=1#y and http://host/@user",
        "version 1.2.3.4.5 and 999.1.1.1",
        "sk-learn and task-force, ghp_short, AKIA12",
        "550e8400-e29b-41d4-a716-446655440000",
        "password: please reset it",
        "4111111111111112 and 110101199003071098",
        "GB29NWBK60161331926818",
        "",
        "1234567",
    ],
)
def test_what_only_looks_personal_is_left(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("身份证号：110101199003071091", ("cn_id", "110101199003071091")),
        ("卡号 4111 1111 1111 1112", ("card", "4111 1111 1111 1112")),
        ("Card number: 4111111111111112.", ("card", "4111111111111112")),
        ("电话：6234567", ("phone", "6234567")),
        ("my phone no. is 12345678", ("phone", "12345678")),
        ("tel13812345678", ("phone", "13812345678")),
        ("IBAN: GB29NWBK60161331926818", ("iban", "GB29NWBK60161331926818")),
        ("卡号是：身份证 110101199003071091", ("cn_id", "110101199003071091")),
    ],
)
def test_a_number_with_an_error_is_found_next_to_its_name(text: str, expected: tuple[str, str]) -> None:
    assert found(text) == [expected]


@pytest.mark.parametrize(
    "text", ["phone. Order 12345678", "电话。单号12345678", "phone on 2024-01-15", "phone 12 34; 12345678"]
)
def test_a_name_counts_only_close_by_in_the_same_sentence(text: str) -> None:
    assert found(text) == []


def test_neighbouring_numbers_are_told_apart() -> None:
    text = "13812345678 13987654321，4111 1111 1111 1111 212-555-0123/192.168.1.1"
    assert [entity for entity, _ in found(text)] == ["phone", "phone", "card", "phone", "ip"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("555-0123 555-0124 555-0125", 3),
        (".".join(["13812345678"] * 40), 40),
        ("4111 1111 1111 1112", 0),
        ("12 34 56 78 12 34 56 78 12 34 56 78", 0),
    ],
)
def test_a_bare_grouping_counts_only_if_it_ends_there(text: str, count: int) -> None:
    """No half of a mistyped card number is taken for a phone number, which would leave the other half readable."""
    assert len(found(text)) == count


def test_only_chosen_types_are_found() -> None:
    text = "a@example.com 13812345678 4111111111111111"
    assert found(text, Detector(["card"])) == [("card", "4111111111111111")]
    assert found(text, Detector([])) == []


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PrivacyError, match=r"'diagnosis'.*standard.*email.*phone"):
        Detector(["email", "diagnosis"])


def test_a_private_key_without_its_end_is_found_to_the_end() -> None:
    text = "key: -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nand so on"
    assert found(text) == [("secret", text[5:])]


def test_a_password_is_found_without_its_name() -> None:
    assert found("Server=db;User=app;Password=hunter2!;Port=1") == [("secret", "hunter2!")]
    assert found('{"api_key": "abc123def"}') == [("secret", "abc123def")]
    assert found("Authorization: Bearer abcdefghij0123456789") == [("secret", "abcdefghij0123456789")]


def test_an_address_inside_a_url_with_credentials_is_one_secret() -> None:
    value = "https://a@example.com:pw@192.168.1.1/x"
    assert found(f"go to {value}.") == [("secret", value)]


def test_overlapping_spans_become_one_that_covers_all() -> None:
    """The longest gives the type; equally long ones, the first by rank."""
    rank = ("card", "phone")
    assert resolve([Span(5, 9, "phone"), Span(0, 6, "card")], rank) == [Span(0, 9, "card")]
    assert resolve([Span(0, 4, "phone"), Span(0, 4, "card")], rank) == [Span(0, 4, "card")]
    assert resolve([Span(0, 4, "phone"), Span(4, 8, "phone")], rank) == [Span(0, 4, "phone"), Span(4, 8, "phone")]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10), st.sampled_from(["a", "b", "c"]))))
def test_resolving_covers_exactly_what_was_found(drawn: list[tuple[int, int, str]]) -> None:
    spans = [Span(start, start + length, entity) for start, length, entity in drawn]
    resolved = resolve(spans, ("a", "b"))
    assert {i for s in resolved for i in range(s.start, s.end)} == {i for s in spans for i in range(s.start, s.end)}
    assert all(left.end <= right.start for left, right in pairwise(resolved))


@given(st.text(alphabet="+(0123456789 .-/x:@aG转电话１\u200b", max_size=80))
def test_spans_are_ordered_disjoint_and_inside_the_text(text: str) -> None:
    position = 0
    for span in ALL.find(text):
        assert position <= span.start < span.end <= len(text)
        position = span.end


CRAFTED = [
    *(
        "1",
        "@",
        "a.",
        "a@",
        "a@b.",
        "::::",
        "1:",
        "1-",
        "12-",
        "99.99.99 ",
        "0-00-00",
        "1.1.1.1.",
        "1234-",
        "+1",
        "+49 1",
    ),
    *("(1)", "GB29 ", "sk-", "eyJ", "a://b:c", "x:y@", "password=", "-----BEGIN PRIVATE KEY-----", "phone 1234567 "),
    *("1\u200b", "１", "call ", "[", "EMAIL_7K2QM "),
    *("12 ", "12-34-56 ", "1/1/90 ", "123-45-6789 ", "12 May 1990 ", "born 1/1/90 ", "生日19900101", "1990年1月1日"),
    *("建国路1号", "在1号", "12 A Street ", "12 A ", "via A ", "Aweg 1 ", "box 1 ", "京A12345", "京A", "passport E1 "),
    *("护照E1234567", "sort code 12", "a.com/", "www.a.", "http://(", "http://a)", "00:1A:", "0011.2233."),
    *("密码是a1b2c3", "token a1B2c3D4", "account 12 ", "卡号1234567 ", "1234567-fax "),
]
EVERYTHING = Detector(["all"])


@pytest.mark.parametrize("piece", CRAFTED)
def test_work_grows_with_the_text_and_not_with_its_square(piece: str) -> None:
    """Eight times the text takes about eight times the work: far below the sixty-four of a quadratic loop."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            EVERYTHING.find(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(24_000) < 32 * seconds(3_000) + 0.02
