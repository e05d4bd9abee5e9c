"""Leases: of equal requests in several processes one is asked, and the others wait. Stores here are processes."""

from __future__ import annotations

import asyncio

import pytest
from support.cache import Place, stored
from support.cache import place as _place

from airflow_ai_provider.core.cache import ResponseStore, Stored, store
from airflow_ai_provider.core.cache import store as waiting
from airflow_ai_provider.core.cache.backend import OWNER_SECONDS, Seen

place = _place
KEY, OTHER = b"k" * 32, b"o" * 32
HOUR = 3600


async def claim(store: ResponseStore, *keys: bytes, run: str = "run-a") -> list[bool]:
    return await store.claim_many(keys or [KEY], run=run, ttl=HOUR)


async def others_answer(store: ResponseStore, key: bytes = KEY) -> Stored | None:
    return await store.answer_of_another(key, run="run-b", ttl=HOUR)


async def ticks(number: int = 5) -> None:
    """Let whoever waits look a few times."""
    for _ in range(number):
        await asyncio.sleep(waiting.FIRST_SECONDS)


async def closed(*stores: ResponseStore) -> None:
    for each in stores:
        await each.close()


async def test_a_key_is_claimed_by_one_and_its_answer_is_the_others(place: Place) -> None:
    one, two = place.open(), place.open()
    assert await claim(one) == [True]
    assert await claim(two) == [False]
    waits = asyncio.create_task(others_answer(two))
    await ticks()
    assert not waits.done()
    await one.keep(KEY, stored(text="paid once"), ttl=HOUR)
    answer = await waits
    assert answer is not None
    assert answer.text == "paid once"
    assert place.leases() == set(), "an answer frees its lease"
    await closed(one, two)


async def test_whoever_ends_without_an_answer_lets_one_of_the_others_ask(place: Place) -> None:
    one, two, three = place.open(), place.open(), place.open()
    assert await claim(one) == [True]
    waits = [asyncio.create_task(others_answer(store)) for store in (two, three)]
    await ticks()
    await one.release(KEY)
    assert [await wait for wait in waits] == [None, None]
    assert sorted([*await claim(two), *await claim(three)]) == [False, True]
    await closed(one, two, three)


async def test_a_claim_after_the_answer_came_is_none_and_the_answer_is_there(place: Place) -> None:
    """The look-up was a miss, then the other process finished, then we claim: it must not be asked twice."""
    one, two = place.open(), place.open()
    assert await claim(one) == [True]
    assert await two.find_many([KEY], run="run-b", ttl=HOUR) == [None]
    await one.keep(KEY, stored(), ttl=HOUR)
    assert await claim(two, run="run-b") == [False]
    assert await others_answer(two) is not None
    await closed(one, two)
    assert place.leases() == set()


@pytest.mark.parametrize("bad", ["too old", "meddled with"])
async def test_an_answer_that_is_not_good_is_asked_anew_by_one(place: Place, bad: str) -> None:
    one, two = place.open(), place.open()
    await one.keep(KEY, stored(created_at=1000), ttl=HOUR)
    if bad == "meddled with":
        place.overwrite(KEY, b"A" * 99)
    assert await claim(one, run="run-b") == [True]
    assert await claim(two, run="run-b") == [False]
    waits = asyncio.create_task(others_answer(two))
    await ticks()
    assert not waits.done(), "the old answer is not what it waits for"
    await one.keep(KEY, stored(text="new", run="run-b"), ttl=HOUR)
    answer = await waits
    assert answer is not None
    assert answer.text == "new"
    await closed(one, two)


async def test_a_process_may_claim_again_what_it_has(place: Place) -> None:
    """The reply to a claim may have been lost."""
    one = place.open()
    assert await claim(one) == [True]
    assert await claim(one) == [True]
    await closed(one)


async def test_claims_of_many_rows_are_told_apart(place: Place) -> None:
    one, two = place.open(), place.open()
    keys = [n.to_bytes(32, "big") for n in range(600)]
    assert await claim(one, *keys[::2]) == [True] * 300
    rows = await asyncio.gather(*(two.claim(key, run="run-b", ttl=HOUR) for key in keys))
    assert rows == [n % 2 == 1 for n in range(600)]
    await closed(one, two)


async def test_what_another_owner_has_is_not_freed_by_mistake(place: Place) -> None:
    one, two, three = place.open(), place.open(), place.open()
    assert await claim(one) == [True]
    await two.release(KEY)
    await two.keep(OTHER, stored(), ttl=HOUR)
    assert await claim(three) == [False]
    await closed(one, two, three)


async def test_the_leases_of_an_owner_that_is_silent_are_free(place: Place) -> None:
    one, two = place.open(), place.open()
    assert await claim(one, KEY, OTHER) == [True, True]
    waits = asyncio.create_task(others_answer(two))
    await ticks()
    assert not waits.done()
    place.silence()
    assert await waits is None
    assert await claim(two) == [True]
    assert await claim(one) == [False], "who was silent too long has lost what others took"
    assert await claim(one, OTHER) == [True], "and still has what nobody wanted"
    await closed(one, two)


async def test_the_next_try_of_a_task_waits_for_nothing_that_a_dead_one_had_leased(place: Place) -> None:
    """Another task waits until the dead one is believed dead; its own next try knows, and what it leases is its own."""
    dead, stranger, successor = place.open(task="t1"), place.open(task="t2"), place.open(task="t1")
    assert await claim(dead, KEY, OTHER) == [True, True]
    assert await claim(stranger) == [False]
    assert await claim(successor) == [True]
    assert await claim(stranger, KEY, OTHER) == [False, True]
    await closed(stranger, successor)
    await dead.close()


async def test_an_owner_is_heard_of_while_it_holds_anything(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    nap = asyncio.sleep

    async def short(seconds: float) -> None:
        if seconds == OWNER_SECONDS / 3:
            naps.append(seconds)
        await nap(min(seconds, 0.01))

    monkeypatch.setattr("airflow_ai_provider.core.cache.store.asyncio.sleep", short)
    one, two = place.open(), place.open()
    assert await claim(one) == [True]
    place.silence()
    told = len(naps)
    while len(naps) < told + 3:
        await nap(0.005)
    assert await claim(two) == [False], "it was heard of again"
    await one.release(KEY)
    while one._staying is not None:
        await nap(0.005)
    await closed(one, two)


async def test_closing_frees_what_is_held(place: Place) -> None:
    one, two = place.open(), place.open()
    assert await claim(one) == [True]
    await one.close()
    assert await claim(two) == [True]
    await two.close()


async def test_a_cancelled_claim_holds_nothing(place: Place) -> None:
    one, two = place.open(), place.open()
    for turns in range(6):  # before it is sent, on the way, and when the reply is there but not yet read
        key = bytes([turns]) * 32
        task = asyncio.create_task(one.claim(key, run="run-a", ttl=HOUR))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await one._claims.idle()
    await one._finishes.idle()
    assert place.leases() == set()
    assert one._held == set()
    await closed(one, two)


async def test_a_cancelled_wait_is_looked_at_no_more(place: Place) -> None:
    one, two = place.open(), place.open()
    assert await claim(one) == [True]
    waits = [asyncio.create_task(others_answer(two)) for _ in range(3)]
    await ticks()
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    await ticks(2)
    assert two._waiting._waits == []
    assert two._waiting._poller is None
    await closed(one, two)


async def test_after_an_outage_nobody_waits_for_what_was_held_before_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that could not be given up is no longer counted once its owner, who is another one now, is silent."""
    monkeypatch.setattr(store, "_SLOW_SECONDS", 1e9)
    one, two = place.open(), place.open()
    assert await claim(one) == [True]
    place.take_away()
    await one.keep(KEY, stored(), ttl=HOUR)
    place.bring_back()
    assert await claim(one, OTHER) == [True]
    place.silence()
    await one._backend.stay(one._owner)
    assert await claim(two, KEY, OTHER) == [True, False]
    await closed(one, two)


async def test_all_who_wait_are_looked_for_together_and_ever_less_often() -> None:
    looks: list[list[bytes]] = []
    answers: dict[bytes, bytes] = {}
    fourth = asyncio.Event()

    async def look(keys: list[bytes]) -> list[Seen]:
        looks.append(keys)
        if len(looks) == 4:
            fourth.set()
        return [Seen(answers.get(key), leased=True) for key in keys]

    waits = waiting.Waiting(look)
    rows = [asyncio.create_task(waits.until_ended(bytes([n]), lambda value: stored(text="x"))) for n in range(100)]
    await fourth.wait()
    assert [len(keys) for keys in looks[:4]] == [100] * 4
    answers[b"\x05"] = b"value"
    await rows[5]
    await waits.close()
    assert [await row for row in rows if row is not rows[5]] == [None] * 99


def test_pauses_between_looks_double_up_to_a_quarter_of_a_second() -> None:
    pauses, pause = [], 0.0
    for _ in range(7):
        pause = waiting.next_pause(pause)
        pauses.append(pause)
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.25, 0.25, 0.25]
