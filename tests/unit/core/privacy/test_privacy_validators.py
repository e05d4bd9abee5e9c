from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.detectors import checksums

# Test numbers that the networks publish.
CARDS = [
    "4111111111111111", "4222222222222", "5555555555554444", "2223003122003222", "378282246310005",
    "6011111111111117", "30569309025904", "3530111333300000", "6200000000000005", "6759649826438453",
]  # fmt: skip


@pytest.mark.parametrize("number", CARDS)
def test_test_cards_of_the_networks_are_cards(number: str) -> None:
    assert checksums.card(number.encode())


@given(st.sampled_from(CARDS), st.data())
def test_luhn_notices_any_changed_digit(number: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(number) - 1))
    other = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != number[position]]))
    assert not checksums.luhn((number[:position] + other + number[position + 1 :]).encode())


@pytest.mark.parametrize("number", ["1700000000000", "0000000000000000", "1234567890128", "411111111111"])
def test_numbers_outside_issuer_ranges_are_no_cards(number: str) -> None:
    assert not checksums.card(number.encode())


def _cn_check(first: str) -> str:
    weights = [2 ** (17 - index) % 11 for index in range(17)]
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(first, weights, strict=True)) % 11]


@given(
    province=st.sampled_from(["11", "31", "44", "50", "65"]),
    born=st.dates(min_value=datetime.date(1900, 1, 1), max_value=datetime.date(2099, 12, 31)),
    serial=st.integers(0, 999),
)
def test_resident_numbers_with_the_right_check_character_are_valid(
    province: str, born: datetime.date, serial: int
) -> None:
    first = f"{province}0101{born:%Y%m%d}{serial:03d}"
    check = _cn_check(first)
    assert checksums.cn_id(first.encode(), check.encode())
    assert checksums.cn_id(first.encode(), check.lower().encode())
    wrong = "0" if check != "0" else "1"
    assert not checksums.cn_id(first.encode(), wrong.encode())


@pytest.mark.parametrize("first", ["11010119900230123", "00010119900307123", "11010118000307123"])
def test_resident_numbers_need_a_real_date_and_a_province(first: str) -> None:
    assert not checksums.cn_id(first.encode(), _cn_check(first).encode())


@pytest.mark.parametrize(
    "code", ["GB29NWBK60161331926819", "DE89370400440532013000", "FR1420041010050500013M02606", "NO9386011117947"]
)
def test_ibans_of_the_registry_are_valid(code: str) -> None:
    assert checksums.iban(code.encode())
    assert checksums.iban(code.lower().encode())
    assert not checksums.iban((code[:-1] + ("1" if code[-1] != "1" else "2")).encode())
    assert not checksums.iban(code[:-1].encode())


@pytest.mark.parametrize(
    ("address", "valid"),
    [
        ("2001:db8::1", True), ("::1", True), ("fe80::1ff:fe23:4567:890a", True), ("::ffff:192.0.2.1", True),
        ("1:2:3:4:5:6:7:8", True), ("::", False), ("12:30:45", False), ("a::b", False), ("::::", False),
    ],
)  # fmt: skip
def test_ipv6_addresses_are_told_from_times_and_code(address: str, valid: bool) -> None:
    assert checksums.ipv6(address.encode()) is valid
