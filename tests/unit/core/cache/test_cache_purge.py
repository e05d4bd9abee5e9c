"""Counting and removing stored answers: by team, by age, and by the person they are about; both kinds of store."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.cache import Place, entry, stored
from support.cache import place as _place

from airflow_ai_provider.core.cache.purge import Purged, Selection, Subjects, TeamStats, count, forms, purge
from airflow_ai_provider.core.cache.redis_backend import RedisResponses
from airflow_ai_provider.core.pipeline.prepare import profile_masker
from airflow_ai_provider.core.policy import MaskingProfile
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, fresh_keyring, with_fresh_key
from airflow_ai_provider.errors import KeyringError, PrivacyError, StoreUnavailable

place = _place
NOW = int(time.time())
DAY = 86400
PROFILE = MaskingProfile(detect=("email", "phone"), columns={"customer": "PERSON"})


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def keep(place: Place, number: int, team: str = "support", age: int = 0, keyring: Keyring | None = None) -> None:
    opened = place.open(keyring)
    await opened.keep(key_of(number), stored(team=team, created_at=NOW - age), ttl=DAY)
    await opened.close()


async def keep_masked(place: Place, number: int, text: str, scope: str, keyring: Keyring | None = None) -> list[str]:
    """An answer to a row with these personal values, as the gateway stores it; the row's tokens."""
    team = "support"
    masker = profile_masker(PROFILE, keyring or place.keyring, team=team, scope=scope)
    mask = masker.for_row({"customer": "Ada Lovelace"}, f"row {number}" if scope == "row" else None)
    masked = mask.mask(text)
    opened = place.open(keyring)
    answer = stored(text=masked, team=team, tokens=tuple(mask.tokens), scope=mask.scope)
    await opened.keep(key_of(number), answer, ttl=DAY)
    await opened.close()
    return list(mask.tokens)


async def purged(place: Place, selection: Selection, keyring: Keyring | None = None, dry_run: bool = False) -> Purged:
    backend, done = place.backend(), Purged()
    await purge(backend, selection, keyring or place.keyring, done, dry_run=dry_run)
    await backend.close()
    return done


def left(place: Place) -> set[int]:
    return {int.from_bytes(key, "big") for key in place.raw()}


async def test_answers_are_counted_by_team_with_their_size_and_age(place: Place) -> None:
    for number, (team, age) in enumerate([("support", 5), ("support", 50), ("sales", 7)]):
        await keep(place, number, team, age)
    backend = place.backend()
    sizes = {int.from_bytes(key, "big"): len(value) for key, value in place.raw().items()}
    support = TeamStats("support", 2, sizes[0] + sizes[1], NOW - 50, NOW - 5)
    sales = TeamStats("sales", 1, sizes[2], NOW - 7, NOW - 7)
    assert await count(backend) == [sales, support]
    assert await count(backend, "sales") == [sales]
    assert await count(backend, "nobody") == []
    await backend.close()


async def test_thousands_are_counted_and_removed_in_groups(place: Place) -> None:
    backend = place.backend()
    await backend.finish([entry(key_of(n), b"A" + bytes(8) + b"\0\7support" + b"x") for n in range(2500)], (), "me")
    (found,) = await count(backend)
    assert (found.team, found.answers) == ("support", 2500)
    await backend.close()
    done = await purged(place, Selection(team="support"))
    assert (done.seen, done.removed) == (2500, 2500)
    assert left(place) == set()


async def test_what_is_given_is_met_by_all_that_is_removed(place: Place) -> None:
    for number, (team, age) in enumerate([("support", 5), ("support", 2 * DAY), ("sales", 2 * DAY), ("sales", 5)]):
        await keep(place, number, team, age)
    tried = await purged(place, Selection(team="support", before=NOW - DAY), dry_run=True)
    assert (tried.seen, tried.removed) == (1, 1)
    assert left(place) == {0, 1, 2, 3}, "a dry run removes nothing"
    done = await purged(place, Selection(team="support", before=NOW - DAY))
    assert done == tried
    assert left(place) == {0, 2, 3}
    assert (await purged(place, Selection(before=NOW - DAY))).removed == 1
    assert left(place) == {0, 3}
    assert (await purged(place, Selection(team="sales"))).removed == 1
    assert left(place) == {0}


SCOPES = ('["team","support"]', '["dag","support","d"]', '["run","support","d","r"]', "row")


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_person_is_found_by_a_value_in_every_scope_of_tokens(place: Place, scope: str) -> None:
    texts = ("ada@example.org asks", "bob@example.org asks", "call +49 170 1234567", "nobody asks")
    for number, text in enumerate(texts):
        await keep_masked(place, number, text, scope)
    assert not any(b"ada@" in value for value in place.raw().values())
    done = await purged(place, Selection(subjects=Subjects(place.keyring, values=["ada@example.org"])))
    assert (done.seen, done.removed, done.unreadable) == (4, 1, 0)
    assert left(place) == {1, 2, 3}
    values = ["+49 170 1234567", "carol@example.org"]
    assert (await purged(place, Selection(subjects=Subjects(place.keyring, values=values)))).removed == 1
    assert left(place) == {1, 3}


async def test_a_person_is_found_by_tokens(place: Place) -> None:
    (ada,) = await keep_masked(place, 0, "ada@example.org asks", SCOPES[0])
    both = await keep_masked(place, 1, "ada@example.org and bob@example.org", SCOPES[0])
    (bob,) = set(both) - {ada}
    await keep_masked(place, 2, "ada@example.org asks", SCOPES[1])
    assert (await purged(place, Selection(subjects=Subjects(place.keyring, named=[bob])))).removed == 1
    assert left(place) == {0, 2}
    (elsewhere,) = await keep_masked(place, 3, "ada@example.org again", SCOPES[1])
    subjects = Subjects(place.keyring, named=[ada, elsewhere])
    assert (await purged(place, Selection(subjects=subjects))).removed == 3


@pytest.mark.parametrize(
    "text", ["Ada Lovelace asks", "from LOVELACE, ADA", "Dear Ms. Lovelace", "ada lovelace", "A. Lovelace"]
)
async def test_a_name_is_found_in_the_forms_that_masking_finds_it_in(place: Place, text: str) -> None:
    assert await keep_masked(place, 0, text, SCOPES[0]), "it was masked"
    await keep_masked(place, 1, "nobody", SCOPES[0])
    done = await purged(place, Selection(subjects=Subjects(place.keyring, values=["Ada Lovelace"])))
    assert (done.removed, left(place)) == (1, {1})


async def test_a_person_is_found_under_the_key_that_was_active_then(place: Place) -> None:
    before = fresh_keyring()
    after = Keyring.from_mapping(with_fresh_key(before))
    await keep_masked(place, 0, "ada@example.org asks", SCOPES[0], Keyring.from_mapping(before))
    await keep_masked(place, 1, "ada@example.org asks", SCOPES[0], after)
    done = await purged(place, Selection(subjects=Subjects(after, values=["ada@example.org"])), after)
    assert (done.removed, done.unreadable) == (2, 0)


async def test_another_teams_answers_have_other_tokens_and_are_found_as_well(place: Place) -> None:
    masker = profile_masker(PROFILE, place.keyring, team="sales", scope='["team","sales"]')
    mask = masker.for_row({})
    opened = place.open()
    answer = stored(text=mask.mask("ada@example.org"), team="sales", tokens=tuple(mask.tokens), scope=mask.scope)
    await opened.keep(key_of(0), answer, ttl=DAY)
    await opened.close()
    await keep_masked(place, 1, "ada@example.org asks", SCOPES[0])
    subjects = Subjects(place.keyring, values=["ada@example.org"])
    assert (await purged(place, Selection(team="sales", subjects=subjects))).removed == 1
    assert left(place) == {1}
    assert (await purged(place, Selection(subjects=subjects))).removed == 1


async def test_what_cannot_be_opened_is_left_and_counted_until_it_is_asked_for(place: Place) -> None:
    await keep_masked(place, 0, "ada@example.org asks", SCOPES[0])
    await keep_masked(place, 1, "ada@example.org asks", SCOPES[0], Keyring.from_mapping(fresh_keyring()))
    await keep_masked(place, 2, "bob@example.org asks", SCOPES[0])
    place.overwrite(key_of(3), b"of an older release")
    subjects = Subjects(place.keyring, values=["ada@example.org"])
    done = await purged(place, Selection(subjects=subjects))
    assert (done.seen, done.removed, done.unreadable) == (4, 1, 2)
    assert left(place) == {1, 2, 3}
    done = await purged(place, Selection(unreadable=True))
    assert (done.removed, done.unreadable) == (2, 0)
    assert left(place) == {2}


async def test_persons_cannot_be_told_apart_without_a_keyring(place: Place) -> None:
    backend = place.backend()
    with pytest.raises(KeyringError, match="keyring"):
        await purge(backend, Selection(unreadable=True), None, Purged())
    await backend.close()


@pytest.mark.parametrize(
    "token", ["[EMAIL_7K2Q]", "EMAIL_7K2QM", "[email_7K2QM]", "ada@example.org", "[EMAIL_7K2QM] ", ""]
)
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(PrivacyError, match="no token"):
        Subjects(Keyring.from_mapping(fresh_keyring()), named=[token])


def test_a_value_is_looked_for_as_given_and_in_other_cases() -> None:
    assert forms("DE89 3704") == {"DE89 3704", "de89 3704", "De89 3704"}
    assert {"Zoë Müller", "zoe muller", "MÜLLER, ZOË", "Z. Müller", "frau muller"} <= forms("Zoë Müller")
    assert " padded " in forms(" padded ")
    assert "padded" in forms(" padded ")


async def test_a_store_that_fails_on_the_way_says_how_far_it_came(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(place, 0)
    backend, done = place.backend(), Purged()

    async def refused() -> None:
        raise StoreUnavailable("response store: gone")

    monkeypatch.setattr(backend, "tidy", refused)
    with pytest.raises(StoreUnavailable):
        await purge(backend, Selection(team="support"), None, done)
    assert done.removed == 1
    await backend.close()


async def test_only_our_own_names_in_redis_are_looked_at(tmp_path: Path, empty_redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(empty_redis_url) as client:
        client.set("celery-task", "x")
        client.rpush(b"ai:response:" + key_of(7), "a list of somebody's")
        place = Place(tmp_path, empty_redis_url, None)
        await keep(place, 0)
        backend = RedisResponses(empty_redis_url)
        assert [(each.team, each.answers) for each in await count(backend)] == [("support", 1), (None, 1)]
        await backend.close()
        assert (await purged(place, Selection(team="support"))).removed == 1
        assert client.get("celery-task") == b"x"


async def test_what_is_removed_from_the_file_is_overwritten(tmp_path: Path) -> None:
    place = Place(tmp_path, None, None)
    await keep(place, 0)
    await keep(place, 1, team="sales")
    sealed = place.raw()[key_of(0)]
    assert sealed[-64:] in on_disk(tmp_path)
    await purged(place, Selection(team="support"))
    assert sealed[-64:] not in on_disk(tmp_path)
    assert left(place) == {1}


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("responses.db*"))
