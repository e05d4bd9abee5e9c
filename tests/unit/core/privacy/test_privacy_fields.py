"""Field functions with a key: what they hide, what they keep, and that nothing opens in another place."""

from __future__ import annotations

import base64
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_privacy_nested import VALUES, same

from airflow_ai_provider.core.privacy.crypto.fields import Fields, is_ciphertext, key_ids, pack, unpack
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.privacy.detectors.text_view import view
from airflow_ai_provider.core.privacy.masking.tokens import TokenPattern
from airflow_ai_provider.errors import KeyringError, PrivacyError

SECRETS = {"k1": b"a" * 32, "k2": b"b" * 32}


def keyring(active: str = "k1", *ids: str) -> Keyring:
    keys = {key: {"secret": base64.b64encode(SECRETS[key]).decode()} for key in ids or (active,)}
    return Keyring.from_mapping({"version": 1, "active": active, "keys": keys})


FIELDS = Fields(keyring(), team="support", table="customers")
HERE = {"column": "iban", "record": "7"}


@given(value=VALUES)
def test_what_was_encrypted_comes_back_with_its_types(value: Any) -> None:
    assert same(FIELDS.decrypt(FIELDS.encrypt(value, **HERE), **HERE), value)
    assert same(FIELDS.decrypt(FIELDS.deterministic(value, domain="d"), **HERE, domain="d"), value)


@pytest.mark.parametrize(
    "value",
    [
        float("inf"),
        -0.0,
        10**40,
        datetime(2024, 1, 31, 12, tzinfo=UTC),
        timedelta(days=-1, microseconds=3),
        "\ud83d\ude00",
        {1: {b"k": (1, [2.0, None])}},
    ],
)
def test_unusual_values_come_back_too(value: Any) -> None:
    back, kind = unpack(pack(value, "int32"))
    assert kind == "int32"
    assert same(back, value)
    assert repr(back) == repr(value)


def test_types_that_could_not_be_given_back_are_refused() -> None:
    class Name(str):
        pass

    endless: list[Any] = []
    endless.append(endless)
    for value in (Name("x"), {1, 2}, object(), endless):
        with pytest.raises(PrivacyError):
            FIELDS.encrypt(value, **HERE)
    for data in (b"", b"x", b"[1,2,3]", b'["nope","x"]', b'["decimal","x"]'):
        with pytest.raises(PrivacyError, match="cannot be read"):
            unpack(data)


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (FIELDS, {"column": "iban", "record": "8"}),
        (FIELDS, {"column": "bic", "record": "7"}),
        (Fields(keyring(), team="support", table="orders"), HERE),
        (Fields(keyring(), team="sales", table="customers"), HERE),
        (Fields(keyring(), team="support", table='customers","iban'), {"column": "", "record": "7"}),
    ],
)
def test_a_ciphertext_opens_only_in_its_own_place(other: Fields, place: dict[str, str]) -> None:
    """Team, table, column and record: a row cannot be given another row's value."""
    with pytest.raises(PrivacyError, match="does not open"):
        other.decrypt(FIELDS.encrypt("DE89", **HERE), **place)


def test_equal_values_look_different_unless_they_are_meant_to_be_joined() -> None:
    assert FIELDS.encrypt("x", **HERE) != FIELDS.encrypt("x", **HERE)
    orders = Fields(keyring(), team="support", table="orders")
    assert FIELDS.deterministic("x", domain="customer") == orders.deterministic("x", domain="customer")
    assert FIELDS.deterministic("x", domain="customer") != FIELDS.deterministic("x", domain="order")
    assert FIELDS.deterministic("7", domain="d") != FIELDS.deterministic(7, domain="d")
    assert Fields(keyring(), team="sales").deterministic("x", domain="customer") != orders.deterministic(
        "x", domain="customer"
    )


@pytest.mark.parametrize("text", ["", "plain", "enc:", "enc:!!!", "det:AQ", "enc:" + "A" * 80, 7])
def test_what_is_no_ciphertext_is_refused_without_being_quoted(text: Any) -> None:
    with pytest.raises((PrivacyError, KeyringError)) as caught:
        FIELDS.decrypt(text, **HERE)
    assert "plain" not in str(caught.value)


@given(position=st.integers(4, 400), letter=st.sampled_from("Ab9_-="))
def test_no_letter_of_a_ciphertext_can_be_changed(position: int, letter: str) -> None:
    """Not even the unused bits of the last one."""
    for text in (FIELDS.encrypt("DE89", **HERE), FIELDS.deterministic("DE89", domain="iban")):
        assert text is not None
        place = 4 + (position - 4) % (len(text) - 4)
        changed = text[:place] + letter + text[place + 1 :]
        if changed != text:
            with pytest.raises((PrivacyError, KeyringError)):
                FIELDS.decrypt(changed, **HERE)


def test_rotated_keys_read_the_new_one_writes_and_a_lost_one_is_named() -> None:
    rotated = Fields(keyring("k2", "k1", "k2"), team="support", table="customers")
    old, joined = FIELDS.encrypt("DE89", **HERE), FIELDS.deterministic("DE89", domain="iban")
    assert rotated.decrypt(old, **HERE) == rotated.decrypt(joined, **HERE) == "DE89"
    new, rejoined = rotated.reencrypt(old, **HERE), rotated.reencrypt(joined, **HERE)
    assert rotated.reencrypt(new, **HERE) == new
    assert rotated.deterministic("DE89", domain="iban") == rejoined != joined
    assert key_ids([old, joined, "x", None]) == {"k1"}
    assert key_ids([new, rejoined]) == {"k2"}
    lost = Fields(keyring("k2"), team="support", table="customers")
    assert lost.decrypt(new, **HERE) == "DE89"
    for text in (old, joined):
        with pytest.raises(KeyringError, match=r"key 'k1' is not in the keyring \(it has k2\)"):
            lost.decrypt(text, **HERE)


def test_hashes_are_keyed_named_and_bound_to_team_and_domain() -> None:
    """A plain hash of a phone number falls to guessing in minutes."""
    hashed = FIELDS.hash("13812345678")
    assert re.fullmatch(r"k1:[0-9a-f]{32}", hashed)
    assert hashed == FIELDS.hash(13812345678) == Fields(keyring(), team="support", table="x").hash("13812345678")
    others = [
        FIELDS.hash("13812345678", domain="d"),
        Fields(keyring(), team="sales").hash("13812345678"),
        Fields(keyring("k2"), team="support").hash("13812345678"),
        FIELDS.hash("13812345679"),
    ]
    assert len({hashed, *others}) == 5
    pinned = Fields(keyring("k2", "k1", "k2"), team="support", key_id="k1")
    assert pinned.hash("13812345678") == hashed
    assert FIELDS.hash({"a": ["13812345678", None]}) == {"a": [hashed, None]}


def test_pseudonyms_are_tokens_and_differ_where_values_do() -> None:
    token = FIELDS.tokenise("Ann Lee", "PERSON")
    assert [found.token for found in TokenPattern(["PERSON"]).find(view(token))] == [token]
    made = {FIELDS.tokenise(f"customer {n}", "PERSON") for n in range(2000)}
    assert len(made) == 2000
    with pytest.raises(PrivacyError, match="capital letters"):
        FIELDS.tokenise("x", "person")


DAYS = st.dates(date(1950, 1, 1), date(2050, 1, 1))


@given(first=DAYS, second=DAYS, subject=st.text(min_size=1), days=st.integers(1, 400))
def test_shifted_dates_keep_their_intervals_per_subject(first: date, second: date, subject: str, days: int) -> None:
    moved = FIELDS.date_shift([first, second], subject=subject, days=days)
    assert moved[1] - moved[0] == second - first
    assert 1 <= abs((moved[0] - first).days) <= days
    assert FIELDS.date_shift(first.isoformat(), subject=subject, days=days) == moved[0].isoformat()


def test_subjects_are_moved_apart() -> None:
    moved = {FIELDS.date_shift(date(2024, 1, 31), subject=n) for n in range(200)}
    assert len(moved) > 100


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-31", "2024/01/31", "2024.01.31", "20240131", "2024-01-31T08:30:00", "2024-01-31 08:30:00",
        "2024-01-31T08:30:00Z", "2024-01-31T08:30:00+08:00",
    ],
)  # fmt: skip
def test_a_shifted_text_is_written_as_it_was(text: str) -> None:
    moved = FIELDS.date_shift(text, subject="ann")
    assert re.sub(r"\d", "9", moved) == re.sub(r"\d", "9", text)
    assert moved != text


def test_intervals_stay_across_summer_time() -> None:
    zone = ZoneInfo("Europe/Berlin")
    one, two = datetime(2024, 1, 31, 12, tzinfo=zone), datetime(2024, 2, 1, 12, tzinfo=zone)
    for subject in range(20):
        moved = FIELDS.date_shift([one, two], subject=subject)
        assert moved[1].astimezone(UTC) - moved[0].astimezone(UTC) == timedelta(days=1)


@pytest.mark.parametrize(
    ("value", "subject"),
    [
        ("next week", "a"),
        ("2024-02-30", "a"),
        (7, "a"),
        ("", "a"),
        ("20240131T10:00", "a"),
        ("2024-01-31", None),
        ("2024-01-31", ""),
    ],
)
def test_what_is_no_date_is_refused_without_being_quoted(value: Any, subject: Any) -> None:
    with pytest.raises(PrivacyError) as caught:
        FIELDS.date_shift(value, subject=subject)
    assert "week" not in str(caught.value)


def test_a_date_is_not_moved_out_of_the_calendar() -> None:
    refused = 0
    for subject in range(50):
        try:
            FIELDS.date_shift(date.max, subject=subject)
        except PrivacyError:
            refused += 1
    assert 10 < refused < 40, "about half of the subjects are moved forward"


def test_null_stays_null_and_ciphertexts_can_be_told() -> None:
    assert (
        FIELDS.encrypt(None, **HERE) is FIELDS.deterministic(None, domain="d") is FIELDS.decrypt(None, **HERE) is None
    )
    assert FIELDS.hash(None) is FIELDS.tokenise(None, "PERSON") is FIELDS.date_shift(None, subject="a") is None
    assert is_ciphertext(FIELDS.encrypt("", **HERE))
    assert not is_ciphertext("x")
    assert not is_ciphertext(None)
