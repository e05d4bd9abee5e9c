"""The desk's rules as decisions on values, and the script that must decide the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.ratelimit import feedback, limiter, rules
from airflow_ai_provider.core.ratelimit import permits as rates
from airflow_ai_provider.core.ratelimit import rules as adapt
from airflow_ai_provider.core.ratelimit import rules as slots
from airflow_ai_provider.core.ratelimit.feedback import Circuit
from airflow_ai_provider.core.ratelimit.limits import (
    AIM,
    OTHERS,
    Ask,
    BreakerTerms,
    Grant,
    Terms,
    Wanted,
    key_of,
    terms_of,
)
from airflow_ai_provider.core.ratelimit.rules import (
    LEASE,
    SETTLE,
    TURN,
    Adaptive,
    State,
    Worker,
    new_state,
    serve,
    split,
)
from airflow_ai_provider.errors import PolicyError

PLAIN = Terms(rates={"requests": 100.0}, concurrency=10)
FREE = Terms(concurrency=10)


def deployment(**said: Any) -> Deployment:
    return Deployment.model_validate({"model": "openai/gpt-4o-mini", **said})


def ask(worker: str = "w1", *, units: float = 0, **said: Any) -> Ask:
    wanted = {"requests": Wanted(units, 1)} if units else {}
    return Ask(worker, said.pop("team", OTHERS), units=wanted, **said)


# -- what the policy says


def test_a_silent_policy_means_a_thousand_a_minute_and_unlimited_means_none() -> None:
    assert terms_of("d", deployment(), "t").rates == {"requests": pytest.approx(1000 / 60 * AIM)}
    assert terms_of("d", deployment(rpm="unlimited"), "t").adaptive
    assert terms_of("d", Deployment(model="offline/extractive"), "t").adaptive
    every = terms_of("d", deployment(rpm=60, tpm=120, input_tpm=180, output_tpm=240), "t")
    assert list(every.rates.values()) == pytest.approx([AIM, 2 * AIM, 3 * AIM, 4 * AIM])
    assert not every.adaptive


def test_teams_that_are_not_listed_share_what_is_left() -> None:
    terms = terms_of("d", deployment(shares={"a": 0.5, "b": 0.3}), "c")
    assert terms.shares == {"a": 0.5, "b": 0.3, OTHERS: pytest.approx(0.2)}
    assert [terms.team(name) for name in "abc"] == ["a", "b", OTHERS]


def test_a_team_for_which_nothing_is_left_is_told_so() -> None:
    full = deployment(shares={"a": 0.5, "b": 0.5})
    assert OTHERS not in terms_of("d", full, "a").shares
    with pytest.raises(PolicyError, match=r"deployments\.d\.shares: nothing is left for team 'c'"):
        terms_of("d", full, "c")


def test_equal_names_for_other_places_are_other_limits() -> None:
    same = {key_of("d", deployment(rpm=rpm, params={"temperature": 0})) for rpm in (1, 2)}
    others = {
        key_of("d", deployment(**said))
        for said in ({}, {"api_base": "http://a/v1"}, {"connection": "c"}, {"model": "openai/other"})
    }
    assert len(same) == 1
    assert len(others) == 4
    assert same < others


# -- slots


def workers(*wants: int, team: str = OTHERS) -> dict[str, Worker]:
    return {f"{team}{number}": Worker(team, 0.0, want) for number, want in enumerate(wants)}


@given(st.integers(1, 100), st.lists(st.integers(0, 60), min_size=1, max_size=12), st.floats(0, 1000))
def test_slots_add_up_and_nobody_gets_more_than_he_wants(limit: int, wants: list[int], now: float) -> None:
    given_to = split(limit, workers(*wants), {OTHERS: 1.0}, now)
    assert sum(given_to.values()) == min(limit, sum(wants))
    for number, want in enumerate(wants):
        assert 0 <= given_to.get(f"{number}", 0) <= want + 1


def test_slots_are_divided_evenly_among_those_who_want_them() -> None:
    assert sorted(split(10, workers(50, 50, 50, 50), {OTHERS: 1.0}, 0).values()) == [2, 2, 3, 3]
    assert split(10, workers(1, 50), {OTHERS: 1.0}, 0) == {"0": 1, "1": 9}


def test_teams_get_their_shares_of_the_slots_however_many_workers_they_have() -> None:
    all_of_them = workers(50, team="a") | workers(50, 50, 50, team="b")
    got = split(20, all_of_them, {"a": 0.7, "b": 0.3}, 0)
    assert got["a0"] == 14
    assert sum(got.values()) == 20
    assert split(20, workers(50, team="b"), {"a": 0.7, "b": 0.3}, 0) == {"b0": 20}


def test_a_slot_that_several_want_goes_round() -> None:
    seen = set()
    for turn in range(3):
        got = split(1, workers(5, 5, 5), {OTHERS: 1.0}, turn * TURN)
        assert sorted(got.values()) == [0, 0, 1]
        seen |= {name for name, count in got.items() if count}
    assert len(seen) == 3


def test_the_slots_of_a_dead_worker_come_back() -> None:
    state = new_state(FREE, "e")
    assert serve(state, FREE, ask("dead", want=10, in_use=10), 100.0).slots == 10
    assert serve(state, FREE, ask("alive", want=5), 100.0 + LEASE - 1).slots == 0
    assert serve(state, FREE, ask("alive", want=5), 100.0 + LEASE + 1).slots == 5


def test_who_shows_up_keeps_his_slots() -> None:
    state = new_state(FREE, "e")
    for beat in range(100):
        serve(state, FREE, ask("slow", want=10, in_use=10), 100.0 + beat)
    assert serve(state, FREE, ask("other", want=5), 200.0).slots == 0


def test_who_must_give_slots_up_starts_nothing_and_keeps_what_runs() -> None:
    state = new_state(FREE, "e")
    serve(state, FREE, ask("early", want=10), 1.0)
    assert serve(state, FREE, ask("late", want=10), 2.0).slots == 0
    assert serve(state, FREE, ask("early", want=10, in_use=8), 2.1).slots == 5
    assert serve(state, FREE, ask("late", want=10), 2.2).slots == 2
    assert serve(state, FREE, ask("early", want=10, in_use=5), 2.3).slots == 5
    assert serve(state, FREE, ask("late", want=10), 2.4).slots == 5


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.booleans(), st.floats(0, 3)), max_size=60))
def test_no_more_slots_are_out_than_there_are(visits: list[tuple[int, int, bool, float]]) -> None:
    """As long as everybody is heard of: who is silent for longer than his lease counts as dead."""
    state, now, held = new_state(FREE, "e"), 100.0, dict.fromkeys(range(4), 0)
    for who, more, ends, gap in visits:
        now += gap
        for other in held:  # all renew; only one changes anything
            done = held[other] if ends and other == who else 0
            in_use = held[other] - done
            want = in_use + (more if other == who else 0)
            got = serve(state, FREE, ask(str(other), want=want, in_use=in_use), now).slots
            held[other] = max(in_use, min(want, got))
        assert sum(held.values()) <= 10


# -- concurrency that adapts


def test_it_starts_at_the_ceiling_and_a_429_takes_it_down_once_a_round() -> None:
    state = Adaptive(32.0)
    for _ in range(5):
        adapt.adapt(state, ceiling=32, ok=0, seconds=0, limited=3, now=10.0)
    assert state.limit == pytest.approx(32 * 0.7)
    adapt.adapt(state, ceiling=32, ok=0, seconds=0, limited=1, now=11.0)
    assert state.limit == pytest.approx(32 * 0.49)


def test_good_rounds_bring_it_back_one_by_one_to_the_ceiling() -> None:
    state = Adaptive(8.0, short=0.3, long=0.3)
    for _ in range(8):
        adapt.adapt(state, ceiling=12, ok=1, seconds=0.3, limited=0, now=10.0)
    assert state.limit == pytest.approx(9.0, abs=0.1)
    for _ in range(1000):
        adapt.adapt(state, ceiling=12, ok=1, seconds=0.3, limited=0, now=10.0)
    assert state.limit == 12


def test_latency_that_doubles_takes_it_down_and_what_stays_slow_is_normal_in_the_end() -> None:
    state, now, least = Adaptive(32.0), 10.0, 32.0
    for _ in range(500):
        now += 0.1
        adapt.adapt(state, ceiling=32, ok=10, seconds=0.3, limited=0, now=now)
    assert state.limit == 32
    for _ in range(1000):
        now += 0.1
        adapt.adapt(state, ceiling=32, ok=10, seconds=1.5, limited=0, now=now)
        least = min(least, state.limit)
    assert least < 28
    assert state.limit == 32


@given(st.lists(st.floats(0.15, 0.45), min_size=100, max_size=400))
def test_latency_that_merely_varies_changes_nothing(latencies: list[float]) -> None:
    state = Adaptive(32.0)
    for number, seconds in enumerate(latencies):
        adapt.adapt(state, ceiling=32, ok=1, seconds=seconds, limited=0, now=number * 0.01)
    assert state.limit == 32


# -- the circuit


def test_the_circuit_opens_closes_and_probes_ever_less_often() -> None:
    circuit, terms, opened = Circuit(), BreakerTerms(), 100.0
    for _ in range(5):
        feedback.judge(circuit, terms, ok=0, failed=1, streak=1, now=opened)
    assert circuit.state == "open"
    waits, now = [], opened
    for _ in range(6):
        while not feedback.probe(circuit, terms, worker="w", word="want", cool_until=0, now=now):
            now += 0.25
        waits.append(now - opened)
        assert not feedback.probe(circuit, terms, worker="other", word="want", cool_until=0, now=now)
        opened = now
        feedback.probe(circuit, terms, worker="w", word="failed", cool_until=0, now=now)
    assert waits == [1, 2, 4, 5, 5, 5]


def test_a_probe_that_is_never_heard_of_again_makes_way_for_another() -> None:
    circuit, terms = Circuit("open", probe_at=1.0), BreakerTerms(probe_every=5)
    assert feedback.probe(circuit, terms, worker="dies", word="want", cool_until=0, now=1.0)
    assert not feedback.probe(circuit, terms, worker="next", word="want", cool_until=0, now=5.9)
    assert feedback.probe(circuit, terms, worker="next", word="want", cool_until=0, now=6.0)
    feedback.probe(circuit, terms, worker="dies", word="failed", cool_until=0, now=6.1)
    assert circuit.state == "half_open"
    feedback.probe(circuit, terms, worker="dies", word="ok", cool_until=0, now=6.2)
    assert circuit.state == "closed"


def test_a_probe_waits_for_a_cool_down() -> None:
    circuit = Circuit("open", probe_at=1.0)
    assert not feedback.probe(circuit, BreakerTerms(), worker="w", word="want", cool_until=30.0, now=29.0)
    assert feedback.probe(circuit, BreakerTerms(), worker="w", word="want", cool_until=30.0, now=30.0)


def test_answers_to_what_was_sent_before_it_opened_change_nothing() -> None:
    circuit = Circuit("open", probe_at=9.0)
    feedback.judge(circuit, BreakerTerms(), ok=5, failed=5, streak=5, now=2.0)
    assert circuit == Circuit("open", probe_at=9.0)


def test_old_failures_fade() -> None:
    circuit, terms = Circuit(), BreakerTerms(failures=1000)
    for second in range(100):
        feedback.judge(circuit, terms, ok=1, failed=1 if second < 4 else 0, streak=0, now=float(second))
    assert circuit.state == "closed"
    assert circuit.bad < 0.01
    assert circuit.good == pytest.approx(10.5, abs=0.1)


# -- after a long cool-down


@pytest.mark.parametrize("terms", [PLAIN, FREE])
def test_after_a_long_cool_down_a_single_call_of_all_workers_goes_first(terms: Terms) -> None:
    state = new_state(terms, "e")
    for worker in ("w1", "w2"):
        serve(state, terms, ask(worker, want=5), 100.0)
    serve(state, terms, ask("w1", want=5, cool=600.0), 101.0)
    slots_then = [serve(state, terms, ask(worker, want=5), 702.0).slots for worker in ("w1", "w2") * 2][2:]
    assert sorted(slots_then) == [0, 1]
    serve(state, terms, ask("w1", want=5, limited=1, cool=600.0), 703.0)  # it was too early
    assert sum(serve(state, terms, ask(worker, want=5), 1304.0).slots for worker in ("w1", "w2") * 2) == 2
    serve(state, terms, ask("w2", want=5, ok=1, seconds=0.1), 1305.0)
    after = [serve(state, terms, ask(worker, want=5), 1305.5).slots for worker in ("w1", "w2") * 2][2:]
    assert sum(after) > 2


def test_the_worker_of_the_single_call_may_die() -> None:
    state = new_state(PLAIN, "e")
    for worker in ("w1", "w2"):
        serve(state, PLAIN, ask(worker, want=5), 100.0)
    serve(state, PLAIN, ask("w1", want=5, cool=60.0), 100.0)
    given = {worker: serve(state, PLAIN, ask(worker, want=5), 165.0).slots for worker in ("w1", "w2", "w1", "w2")}
    (lucky,) = [worker for worker, slots in given.items() if slots]
    (other,) = {"w1", "w2"} - {lucky}
    heard = [serve(state, PLAIN, ask(other, want=5), 165.0 + second).slots for second in range(30)]
    assert heard[0] == 0
    assert heard[-1] == 1


def test_an_answer_to_what_was_sent_before_does_not_end_the_waiting() -> None:
    state = new_state(PLAIN, "e")
    serve(state, PLAIN, ask("w1", want=5, cool=60.0), 100.0)
    serve(state, PLAIN, ask("w1", want=5, ok=3, seconds=0.1), 101.0)
    assert serve(state, PLAIN, ask("w1", want=5), 161.0).slots == 1


def test_after_a_short_cool_down_all_go_on() -> None:
    state = new_state(PLAIN, "e")
    serve(state, PLAIN, ask("w1", want=5, cool=6.0), 100.0)
    assert serve(state, PLAIN, ask("w1", want=5), 106.5).slots == 5


# -- a desk that lost its memory


def test_a_desk_without_memory_waits_for_the_permits_of_its_earlier_life() -> None:
    state = new_state(PLAIN, "second life")
    new = serve(state, PLAIN, ask("new", units=5, want=5), 100.0)
    assert new.slots == 5
    old = serve(state, PLAIN, ask("old", units=5, want=9, in_use=7, epoch="first life"), 100.1)
    assert old.permits == {}
    assert old.slots == 0
    later = serve(state, PLAIN, ask("old", units=5, want=9, in_use=7, epoch="second life"), 100.1 + SETTLE)
    assert later.slots == 5
    assert later.permits["requests"].start >= 100.1 + SETTLE - rates.BURST


def test_unused_permits_of_an_earlier_life_are_worth_nothing_and_its_debts_are_owed() -> None:
    """What another memory permitted would otherwise come on top of the rate."""
    state = new_state(PLAIN, "second life")
    back = {"requests": 50.0}
    serve(state, PLAIN, ask("old", back=back, epoch="first life"), 100.0)
    assert OTHERS not in state.schedules.get("requests", rates.Schedule()).lines
    serve(state, PLAIN, ask("old", back={"requests": -5.0}, epoch="first life"), 100.0)
    assert state.schedules["requests"].lines[OTHERS].credit == -5.0
    serve(state, PLAIN, ask("old", back=back, epoch="second life"), 100.0)
    assert state.schedules["requests"].lines[OTHERS].credit == 45.0


# -- the script decides the same


class Script:
    """``rules.lua`` on a real Redis, with a clock of our own."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        source = limiter._SCRIPT.decode()
        assert source.count("redis.call('TIME')") == 1
        self._run = self.client.register_script(source.replace("redis.call('TIME')", "{ARGV[3], ARGV[4]}"))

    def serve(self, key: bytes, terms: Terms, asked: Ask, now: float) -> dict[str, Any]:
        seconds, micros = divmod(round(now * 1e6), 1_000_000)
        answer = self._run([key], [orjson.dumps(limiter._as_json(asked)), terms.as_json(), seconds, micros])
        return dict(orjson.loads(answer))


@pytest.fixture(scope="module")
def script(redis_url: str) -> Script:
    return Script(redis_url)


TEAMS = {"a": 0.5, "b": 0.2, OTHERS: 0.3}
counts = st.integers(0, 4)
visits = st.builds(
    lambda team, **said: Ask(team=team, **said | {"worker": f"{team}{said['worker']}"}),
    worker=st.sampled_from("123"),
    team=st.sampled_from(sorted(TEAMS)),
    epoch=st.sampled_from(["", "", "", "other"]),
    in_use=counts,
    want=st.integers(0, 12),
    units=st.dictionaries(
        st.sampled_from(["requests", "tokens"]), st.builds(Wanted, st.integers(1, 500), st.integers(1, 9)), max_size=2
    ),
    back=st.dictionaries(st.sampled_from(["requests", "tokens"]), st.integers(-90, 90), max_size=2),
    ok=counts,
    seconds=st.floats(0.01, 5),
    failed=counts,
    streak=counts,
    limited=st.sampled_from([0, 0, 1, 3]),
    late=st.sampled_from([0, 0, 1]),
    cool=st.sampled_from([0.0, 0.0, 0.0, 0.3, 12.0]),
    probe=st.sampled_from(["", "want", "ok", "failed", "free"]),
    leaving=st.sampled_from([False] * 9 + [True]),
)
every_terms = st.sampled_from(
    [
        Terms({"requests": 50.0, "tokens": 900.0}, 10, TEAMS, BreakerTerms(3, 0.4, 6, 2.0, 3.0)),
        Terms({}, 9, TEAMS, BreakerTerms()),
    ]
)


@settings(max_examples=150)
@given(every_terms, st.lists(st.tuples(visits, st.integers(0, 3_000_000)), min_size=1, max_size=25))
def test_the_script_grants_what_the_rules_grant(script: Script, terms: Terms, told: list[tuple[Ask, int]]) -> None:
    key = b"ai:traffic:test"
    script.client.delete(key)
    now, state = 1_700_000_000.0, None
    for visit, gap in told:
        now = round(now * 1e6 + gap) / 1e6
        visit = replace(
            visit,
            units={limit: wanted for limit, wanted in visit.units.items() if limit in terms.rates},
            back={limit: units for limit, units in visit.back.items() if limit in terms.rates},
            late=min(visit.late, visit.limited),
        )
        state = state or new_state(terms, f"{now:.6f}")
        same_life = visit if visit.epoch else replace(visit, epoch=state.epoch)
        compare(serve(state, terms, same_life, now), script.serve(key, terms, same_life, now), now)
    assert state is not None
    assert_kept(script, key, state)


def compare(grant: Grant, said: Mapping[str, Any], now: float) -> None:
    near = 2e-6  # Redis' packing of numbers in JSON, and 1 µs of its clock
    assert said["epoch"] == grant.epoch
    assert said["slots"] == grant.slots
    assert (said["circuit"], said["changed"], said["probe"]) == (grant.circuit, grant.changed, grant.probe)
    assert said["reason"] == grant.reason
    assert float(said["now"]) == pytest.approx(now, abs=near)
    assert said["catch_up"] == pytest.approx(grant.catch_up)
    assert said["fraction"] == pytest.approx(grant.fraction)
    if grant.cool_until:
        assert now + said["cool"] == pytest.approx(grant.cool_until, abs=near)
    assert said["permits"].keys() == grant.permits.keys()
    for limit, permits in grant.permits.items():
        start, interval, units = said["permits"][limit]
        assert (now + start, interval, units) == pytest.approx(tuple(permits), abs=near)


def assert_kept(script: Script, key: bytes, state: State) -> None:
    ttl = script.client.ttl(key)
    assert isinstance(ttl, int)
    assert 0 < ttl <= 3700
    names = script.client.keys("ai:traffic:test*")
    assert names == [key]
    assert state.epoch


@pytest.mark.parametrize(
    ("name", "module"),
    [
        *((name, rates) for name in ("HORIZON", "BURST", "HUNGRY", "CREDIT")),
        *((name, slots) for name in ("LEASE", "TURN")),
        *((name, adapt) for name in ("DOWN_ON_LIMIT", "DOWN_ON_LATENCY", "TOLERANCE")),
        *((name, feedback) for name in ("START", "LEAST", "STEP", "ROUND", "MEMORY", "FEW", "NARROW", "GROWTH")),
        *((name, feedback) for name in ("CATCH_UP", "MOST_CUT", "SEVERAL", "CATCH_UP_CUT", "CATCH_UP_BACK")),
        ("FIRST_PROBE", feedback),
        ("SETTLE", rules),
    ],
)
def test_the_script_has_the_same_constants(name: str, module: Any) -> None:
    values: dict[str, float] = {}
    for line in limiter._SCRIPT.decode().splitlines():
        if line.startswith("local ") and "=" in line:
            names, _, numbers = line.removeprefix("local ").partition("--")[0].partition("=")
            for one, number in zip(names.split(","), numbers.split(","), strict=False):
                if one.strip().isupper():
                    values[one.strip()] = float(number)
    assert values[name] == getattr(module, name)
