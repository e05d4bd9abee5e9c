"""Routing: rules in their order, hard limits before preference, and weights that pick the same for the same row."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.ledger.prices import ModelFacts, model_facts
from airflow_ai_provider.core.policy import TIERS, Deployment, Route, Rule, Tier
from airflow_ai_provider.core.prompts.text import languages, more_tokens_than, tokens_of
from airflow_ai_provider.core.routing.router import (
    UNKNOWN_CLASS,
    Choice,
    Needs,
    Router,
    attachment_tokens,
    terms_of,
)
from airflow_ai_provider.errors import PermanentError, RoutingError

FREE = {"price": {"input_per_mtok": 0, "output_per_mtok": 0}}
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "small": {"model": "x/small", "region": "us"},
    "trial": {"model": "x/trial", "region": "eu", "image_tokens": 100},
    "large": {"model": "x/large", "context_tokens": 1000, "file_tokens": 50, "json": False, "tools": False},
    "house": {"model": "x/house", "hosting": "self", "region": "EU"},
}
PLAIN = Needs(100)


@dataclass(frozen=True)
class Known:
    name: str
    deployment: Deployment
    facts: ModelFacts


def known(name: str) -> Known:
    deployment = Deployment.model_validate({**FREE, **DEPLOYMENTS[name]})
    return Known(name, deployment, model_facts(name, deployment, "digest"))


def router(name: str = "support", **route: Any) -> Router:
    made = Route.model_validate({"tiers": {"simple": ["small"], "complex": ["large"]}, "masking": "off", **route})
    return Router(name, made, {tier: [known(each) for each in made.names(tier)] for tier in made.tiers})


def by_rules(*rules: dict[str, Any], **complexity: Any) -> Router:
    tiers = {"simple": ["small"], "medium": ["small"], "complex": ["large"]}
    classes = {"column": "class", "vendor": ["public"], "self_hosted": ["secret"]}
    said = {"from": "rules", "rules": list(rules), **complexity}
    return router(tiers=tiers, complexity=said, classification=classes)


# The tier


def test_a_route_without_complexity_has_one_tier_for_all() -> None:
    assert router().choose({"difficulty": "complex"}, "hi", PLAIN) == Choice("simple", "constant")
    assert router(complexity={"default": "complex"}).choose({}, "hi", PLAIN).tier == "complex"


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("complex", Choice("complex", "column")),
        (" Complex ", Choice("complex", "column")),
        ("medium", Choice("complex", "column")),
        ("hard", Choice("simple", "default")),
        ("", Choice("simple", "default")),
        (None, Choice("simple", "default")),
        (3, Choice("simple", "default")),
        (["complex"], Choice("simple", "default")),
    ],
)
def test_a_column_says_the_tier_or_the_default_holds(said: Any, choice: Choice) -> None:
    assert router(complexity={"from": "column"}).choose({"difficulty": said}, "hi", PLAIN) == choice


def test_a_row_without_the_column_says_nothing() -> None:
    assert router(complexity={"from": "column"}).choose({}, "hi", PLAIN) == Choice("simple", "default")


@pytest.mark.parametrize(
    ("rule", "row", "text", "needs", "met"),
    [
        ({"over_tokens": 10}, {}, "a" * 41, Needs(41), True),
        ({"over_tokens": 10}, {}, "a" * 40, Needs(40), False),
        ({"over_tokens": 10}, {}, "银" * 11, Needs(33), True),
        ({"over_bytes": 32}, {}, "银" * 11, Needs(33), True),
        ({"over_bytes": 33}, {}, "银" * 11, Needs(33), False),
        ({"images": True}, {}, "", Needs(1, images=2), True),
        ({"images": True}, {}, "", Needs(1, files=1), False),
        ({"images": False}, {}, "", Needs(1), True),
        ({"files": True}, {}, "", Needs(1, files=1), True),
        ({"tools": True}, {}, "", Needs(1, tools=True), True),
        ({"schema": True}, {}, "", Needs(1, json=True), True),
        ({"schema": False}, {}, "", Needs(1, json=True), False),
        ({"language": "zh"}, {}, "请帮我查一下 order 1234", Needs(1), True),
        ({"language": ["ja", "ko"]}, {}, "请帮我查一下", Needs(1), False),
        ({"classification": "Secret"}, {}, "", Needs(1, classification="secret"), True),
        ({"classification": ["secret"]}, {}, "", Needs(1, classification=UNKNOWN_CLASS), False),
        ({"columns": {"plan": "gold"}}, {"plan": " GOLD"}, "", Needs(1), True),
        ({"columns": {"plan": ["gold", 7]}}, {"plan": 7}, "", Needs(1), True),
        ({"columns": {"urgent": True}}, {"urgent": True}, "", Needs(1), True),
        ({"columns": {"plan": "gold", "n": 1}}, {"plan": "gold", "n": 2}, "", Needs(1), False),
        ({"columns": {"plan": "none"}}, {"plan": None}, "", Needs(1), False),
        ({"columns": {"plan": "gold"}}, {}, "", Needs(1), False),
        ({"over_bytes": 5, "schema": True}, {}, "", Needs(6), False),
        ({"over_bytes": 5, "schema": True}, {}, "", Needs(6, json=True), True),
    ],
)
def test_a_rule_takes_the_rows_that_meet_all_its_conditions(
    rule: dict[str, Any], row: dict[str, Any], text: str, needs: Needs, met: bool
) -> None:
    choice = by_rules({**rule, "tier": "complex"}).choose(row, text, needs)
    assert choice == (Choice("complex", f"rules:{'+'.join(rule)}") if met else Choice("simple", "default"))


def test_the_first_rule_that_is_met_decides_and_is_recorded_by_its_name() -> None:
    made = by_rules(
        {"over_bytes": 100, "tier": "complex", "name": "long"},
        {"over_bytes": 10, "tier": "medium"},
        {"tier": "simple"},
    )
    found = [made.choose({}, "", Needs(size)) for size in (101, 100, 10)]
    assert [choice.routed_by for choice in found] == ["rules:long", "rules:over_bytes", "rules:otherwise"]
    assert [choice.tier for choice in found] == ["complex", "medium", "simple"]


def test_what_is_recorded_has_at_most_forty_characters() -> None:
    every = {"over_tokens": 1, "over_bytes": 1, "images": True, "files": True, "schema": True, "columns": {"a": "b"}}
    made = by_rules({**every, "tier": "complex"})
    choice = made.choose({"a": "b"}, "x" * 99, Needs(99, images=1, files=1, json=True))
    assert choice.routed_by == "rules:over_tokens+over_bytes+images+file"


conditions = st.fixed_dictionaries(
    {},
    optional={
        "over_bytes": st.integers(0, 3),
        "over_tokens": st.integers(0, 1),
        "schema": st.booleans(),
        "images": st.booleans(),
        "columns": st.dictionaries(st.sampled_from("ab"), st.lists(st.sampled_from("xyz"), min_size=1), max_size=2),
        "classification": st.lists(st.sampled_from(["public", "secret"]), max_size=2),
    },
)
rows = st.dictionaries(st.sampled_from("ab"), st.sampled_from([*"xyz", None]))
needs = st.builds(
    Needs,
    st.integers(0, 5),
    images=st.integers(0, 1),
    json=st.booleans(),
    classification=st.sampled_from(["public", "secret", UNKNOWN_CLASS]),
)


@given(conditions, conditions, rows, needs)
def test_a_rule_that_covers_another_takes_all_of_its_rows(
    first: dict[str, Any], second: dict[str, Any], row: dict[str, Any], asked: Needs
) -> None:
    rules = [Rule.model_validate({**each, "tier": "complex"}) for each in (first, second)]
    met = [
        by_rules({**each, "tier": "complex"}).choose(row, "x" * asked.size, asked).tier == "complex"
        for each in (first, second)
    ]
    assert not rules[0].covers(rules[1]) or met[0] or not met[1]


# Keywords


@pytest.mark.parametrize(
    ("text", "tier"),
    [
        ("Please PROVE it", "complex"),
        ("We approve it", None),
        ("prove and list and sort", "medium"),
        ("prove and list", "complex"),
        ("a step  by step", None),
        ("step by step?", "complex"),
        ("请证明这个", "complex"),
        ("C++ or not", "medium"),
        ("", None),
    ],
)
def test_keywords_decide_only_where_no_rule_is_met_and_are_marked(text: str, tier: Tier | None) -> None:
    keywords = {"complex": ["prove", "step by step", "证明"], "medium": ["list", "sort", "C++"]}
    made = by_rules({"schema": True, "tier": "medium"}, keywords=keywords)
    expected = Choice(tier, "rules:keywords (fallback)") if tier else Choice("simple", "default")
    assert made.choose({}, text, PLAIN) == expected
    assert made.choose({}, text, Needs(1, json=True)) == Choice("medium", "rules:schema")


@given(st.text(max_size=200))
def test_any_text_is_routed(text: str) -> None:
    made = by_rules({"language": ["zh", "latin"], "tier": "complex"}, keywords={"complex": [".*", "("]})
    assert made.choose({}, text, PLAIN).tier in TIERS


# Tokens and languages


@given(st.text(), st.integers(0, 60))
def test_the_shortcut_counts_as_the_rule_of_thumb_does(text: str, limit: int) -> None:
    text = text.encode("utf-8", "ignore").decode()
    size = len(text.encode())
    assert more_tokens_than(limit, text, size) == (tokens_of(text, size) > limit)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("123 + 45 = ?!", []),
        ("Wo ist mein Paket?", ["latin"]),
        ("Où est l’été à Łódź", ["latin"]),
        ("我的订单在哪里？谢谢。", ["zh"]),
        ("請問訂單 1234 在哪裡", ["zh"]),
        ("𠮷野家在哪裡", ["zh"]),
        ("注文した商品はどこですか。", ["ja"]),
        ("カード", ["ja"]),
        ("주문한 상품은 어디에 있나요?", ["ko"]),
        ("Где мой заказ?", ["cyrillic"]),
        ("أين طلبي؟", ["arabic"]),
        ("मेरा ऑर्डर कहाँ है", ["devanagari"]),
        ("Πού είναι η παραγγελία μου;", ["el"]),
        ("איפה ההזמנה שלי", ["he"]),
        ("คำสั่งซื้อของฉันอยู่ที่ไหน", ["th"]),
        ("আমার অর্ডার কোথায়", []),
        ("Hello 你好，世界", ["latin", "zh"]),
        ("The answer in a long English text quotes 银行 once", ["latin"]),
        ("😀😀 ok", ["latin"]),
        ("\ud83d broken", ["latin"]),
    ],
)
def test_letters_tell_the_language_or_the_script(text: str, found: list[str]) -> None:
    assert sorted(languages(text)) == found


@pytest.mark.parametrize("length", [2_000, 200_000])
def test_a_long_text_is_told_by_a_sample(length: int) -> None:
    assert languages(("请帮我查一下订单。 Please look it up. " * length)[:length]) == {"latin", "zh"}
    assert languages(("Please look it up. " * length)[:length]) == {"latin"}


@given(st.text(max_size=3000))
def test_at_most_five_languages_are_found_in_any_text(text: str) -> None:
    assert len(languages(text)) <= 5


# What a row may be sent to


def order(made: Router, asked: Needs, tier: Tier = "simple", key: str = "r1") -> Sequence[str]:
    return made.order(tier, asked, key)


ALL = {"simple": ["small", "trial", "large", "house"]}


@pytest.mark.parametrize(
    ("asked", "fitting"),
    [
        (PLAIN, "small trial large house"),
        (Needs(8000), "small trial large house"),
        (Needs(8001), "small trial house"),
        (Needs(1, images=1), "trial"),
        (Needs(1, files=3), "large"),
        (Needs(1, json=True), "small trial house"),
        (Needs(1, tools=True), "small trial house"),
    ],
)
def test_what_a_deployment_does_not_take_is_not_sent_to_it(asked: Needs, fitting: str) -> None:
    assert order(router(tiers=ALL), asked) == tuple(fitting.split())


def test_the_policys_order_is_the_preference() -> None:
    assert order(router(tiers={"simple": ["house", "small"]}), PLAIN) == ("house", "small")


def test_only_deployments_of_the_routes_regions_are_asked() -> None:
    assert order(router(tiers=ALL, regions="EU"), PLAIN) == ("trial", "house")


CLASSES = {"column": "class", "default": "internal", "vendor": ["public", "Internal"], "self_hosted": ["secret"]}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"class": "PUBLIC "}, "public"),
        ({"class": None}, "internal"),
        ({"class": ""}, "internal"),
        ({"class": "secret"}, "secret"),
        ({"class": "confidental"}, UNKNOWN_CLASS),
        ({"class": 7}, UNKNOWN_CLASS),
        ({"class": ["public"]}, UNKNOWN_CLASS),
        ({"other": 1}, UNKNOWN_CLASS),
    ],
)
def test_a_row_has_a_class_that_the_policy_knows_or_an_unknown_one(row: dict[str, Any], found: str) -> None:
    assert router(classification=CLASSES).classify(row) == found


def test_without_a_default_a_silent_row_is_of_an_unknown_class() -> None:
    assert router(classification={**CLASSES, "default": None}).classify({"class": None}) == UNKNOWN_CLASS
    assert router().classify({"class": "secret"}) is None


@given(st.none() | st.text() | st.integers() | st.booleans() | st.lists(st.text()), st.sampled_from(TIERS))
def test_nothing_but_a_class_for_vendors_ever_leaves_the_house(value: Any, tier: Tier) -> None:
    made = router(tiers={name: ["small", {"trial": 1, "house": 1}] for name in TIERS}, classification=CLASSES)
    found = made.classify({"class": value})
    allowed = value is None or str(value).strip().lower() in ("", "public", "internal")
    assert (order(made, Needs(1, classification=found), tier) == ("house",)) is not allowed


def test_needs_without_a_class_are_of_an_unknown_one_where_the_route_has_classes() -> None:
    assert order(router(tiers=ALL, classification=CLASSES), PLAIN) == ("house",)


def test_the_offline_model_is_in_the_house() -> None:
    assert Deployment(model="offline/extractive").self_hosted
    assert not Deployment(model="offline/extractive", hosting="vendor").self_hosted
    assert not Deployment(model="x/y").self_hosted


@pytest.mark.parametrize(
    ("route", "asked", "reason", "says"),
    [
        ({}, Needs(1, images=1), "images", "small (takes no images); say what an image costs at most"),
        (
            {"classification": CLASSES},
            Needs(1, classification="secret"),
            "self_hosted",
            "small (a vendor's, and the data is secret); add one with hosting: self",
        ),
        ({"classification": CLASSES}, PLAIN, "self_hosted", "small (a vendor's, and the data is of an unknown class)"),
        (
            {"regions": ["eu", "ch"]},
            PLAIN,
            "region",
            "small (region us, not eu or ch); add a deployment in that region",
        ),
        (
            {"tiers": {"simple": ["large"]}},
            Needs(9000),
            "context_window",
            "large (takes 1000 tokens, and the row needs more); split the text",
        ),
        (
            {"tiers": {"simple": ["large"]}},
            Needs(1, json=True),
            "json",
            "large (answers by no schema); write json: true",
        ),
        (
            {"tiers": {"simple": ["small", "large"]}},
            Needs(9000, files=1),
            "no_deployment",
            "small (takes no files), large (takes 1000 tokens, and the row needs more); say what a file costs at most "
            "with file_tokens, where a model takes them; or split the text",
        ),
    ],
)
def test_a_row_that_nothing_can_take_says_what_kept_it_from_each(
    route: dict[str, Any], asked: Needs, reason: str, says: str
) -> None:
    with pytest.raises(RoutingError) as caught:
        order(router(**route), asked)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"no deployment of tier simple can take the row: {says}")
    assert isinstance(caught.value, PermanentError)


def test_no_refusal_holds_what_the_row_says() -> None:
    made = router(classification=CLASSES)
    with pytest.raises(RoutingError) as caught:
        order(made, Needs(1, classification=made.classify({"class": "4111 1111 1111 1111"})))
    assert "4111" not in str(caught.value)


def test_images_and_files_add_the_most_that_each_is_charged() -> None:
    deployment = Deployment(model="x/y", image_tokens=1000, file_tokens=70)
    assert attachment_tokens(deployment, Needs(1, images=3, files=2)) == 3140
    assert attachment_tokens(Deployment(model="x/y"), PLAIN) == 0


# Trials


def split(weights: dict[str, int], name: str = "support") -> Router:
    return router(name, tiers={"simple": [weights, "house"]})


@pytest.mark.parametrize(
    "weights", [{"small": 90, "trial": 10}, {"small": 1, "trial": 1}, {"small": 5, "trial": 2, "large": 3}]
)
def test_rows_are_shared_by_weight(weights: dict[str, int]) -> None:
    made, count = split(weights), 20_000
    picked = Counter(order(made, PLAIN, key=f"row-{number}")[0] for number in range(count))
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(picked[name] - count * share) < 4 * deviation, "four standard deviations of a fair draw"


@given(st.text(max_size=20), st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any))
def test_the_others_follow_by_weight_and_then_the_rest_of_the_list(key: str, weights: list[int]) -> None:
    shares = dict(zip(("small", "trial", "large"), weights, strict=True))
    picked, *others, last = order(split(shares), PLAIN, key=key)
    assert shares[picked] > 0
    assert last == "house"
    assert sorted([picked, *others]) == sorted(shares)
    assert [shares[name] for name in others] == sorted((shares[name] for name in others), reverse=True)


@given(st.text(max_size=20), st.integers(0, 99))
def test_more_weight_for_the_last_moves_no_other_row(key: str, weight: int) -> None:
    before = order(split({"small": 100 - weight, "trial": weight}), PLAIN, key=key)[0]
    after = order(split({"small": 99 - weight, "trial": weight + 1}), PLAIN, key=key)[0]
    assert after == before or (before, after) == ("small", "trial")


def test_a_weight_of_nothing_gets_rows_only_when_the_others_fail() -> None:
    made = split({"small": 1, "trial": 0})
    assert {order(made, PLAIN, key=str(number)) for number in range(500)} == {("small", "trial", "house")}


def test_a_place_goes_to_whoever_can_take_the_row() -> None:
    made = split({"small": 99, "trial": 1})
    assert {order(made, Needs(1, images=1), key=str(number)) for number in range(200)} == {("trial",)}


def test_two_trials_pick_apart() -> None:
    """Of the rows that one route gives to its trial, another route's trial gets a half and not all."""
    routers = [split({"small": 1, "trial": 1}, name) for name in ("a", "b")]
    picks = Counter(tuple(order(made, PLAIN, key=str(n))[0] for made in routers) for n in range(4000))
    assert len(picks) == 4
    assert all(800 < count < 1200 for count in picks.values())


_PICK = """
import json, sys
sys.path.insert(0, {folder!r})
from test_routing_router import split, order, PLAIN
print(json.dumps([order(split({{"small": 1, "trial": 1}}), PLAIN, key=f"k{{n}}\\u94f6")[0] for n in range(64)]))
"""


def test_every_process_picks_the_same() -> None:
    here = [order(split({"small": 1, "trial": 1}), PLAIN, key=f"k{n}银")[0] for n in range(64)]
    folder = __file__.rpartition("/")[0]
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", _PICK.format(folder=folder)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(ran.stdout) == here
    # Written down, since a release that picks others would mix the arms of a trial that is under way.
    assert "".join(name[0] for name in here[:16]) == "sstttttttsssstts"


def test_an_answer_in_anothers_place_is_kept_apart() -> None:
    made = split({"small": 1, "trial": 1})
    assert made.stands_for("simple", ("small", "trial", "house")) == (None, "small", None)
    assert made.stands_for("simple", ("trial", "small", "house")) == (None, "trial", None)
    assert made.stands_for("simple", ("trial",)) == (None,)
    assert router(tiers=ALL).stands_for("simple", ("small", "trial")) == (None, None)


# Terms


def test_a_tiers_terms_go_before_the_routes_and_the_jobs_before_both() -> None:
    route = Route.model_validate(
        {
            "tiers": {"simple": ["small"], "complex": ["large"]},
            "masking": "off",
            "max_tokens": 100,
            "system_prompt": "Be brief.",
            "params": {"temperature": 0, "top_p": 1},
            "tier_options": {"complex": {"max_tokens": 2048, "system_prompt": "Think.", "params": {"top_p": 0.5}}},
        }
    )
    simple, hard = terms_of(route, "simple"), terms_of(route, "complex")
    assert (simple.max_tokens, simple.system_prompt, simple.params) == (
        100,
        "Be brief.",
        {"temperature": 0, "top_p": 1},
    )
    assert (hard.max_tokens, hard.system_prompt, hard.params) == (2048, "Think.", {"temperature": 0, "top_p": 0.5})
    said = terms_of(route, "complex", max_tokens=7, system_prompt="No.")
    assert (said.max_tokens, said.system_prompt) == (7, "No.")
