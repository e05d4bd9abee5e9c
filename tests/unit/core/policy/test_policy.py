"""policy.yaml: a policy that loads is complete and consistent; one that does not says everything that is wrong."""

from __future__ import annotations

import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_ai_provider.core.policy import DEFAULT_RPM, Deployment, Policy, Route, load_policy, parse_policy
from airflow_ai_provider.errors import PolicyError

ROOT = Path(__file__).resolve().parents[4]

FULL = """\
version: 1
deployments:
  small:  {model: openai/gpt-4o-mini, connection: openai_default, rpm: 1000, tpm: 2000000, concurrency: 64}
  large:  {model: anthropic/claude-sonnet-4-5, connection: anthropic_default, rpm: 500}
  house:  {model: openai/qwen3-32b, api_base: http://vllm:8000/v1, price: {input_per_mtok: 0.10, output_per_mtok: 0.30}}
routes:
  support:
    tiers: {simple: [small, house], medium: [small], complex: [large]}
    complexity: {from: column, column: difficulty, default: simple}
    escalate: {on: [schema, grounding], to: complex, then: review}
    reuse: {scope: team, ttl: 1h}
    masking: standard
budgets:
  - {team: support, period: day, limit_usd: 100}
masking:
  standard: {detect: [email, phone, cn_id, card, iban, ip, secret], columns: {customer_name: PERSON}}
"""

SMALL = """\
version: 1
deployments:
  small: {model: openai/gpt-4o-mini}
routes:
  support:
    tiers: {simple: [small]}
    masking: off
budgets:
  - {team: support, period: day, limit_usd: 100}
"""


def problems(text: str) -> list[str]:
    """What a policy is refused for, a line each."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    return str(caught.value).splitlines()


BOTH = "input_per_mtok: 1, output_per_mtok: 2"


def changed(old: str, new: str, text: str = SMALL) -> str:
    assert old in text
    return text.replace(old, new)


def test_a_policy_with_everything_in_it_loads() -> None:
    policy = parse_policy(FULL)
    route = policy.route("support")
    assert route.tiers == {"simple": ("small", "house"), "medium": ("small",), "complex": ("large",)}
    assert (route.reuse.scope, route.reuse.ttl, route.masking) == ("team", 3600, "standard")
    assert (route.escalate.on, route.escalate.to) == (("schema", "grounding"), "complex")
    assert route.complexity.from_ == "column"
    assert policy.deployments["house"].price is not None
    assert policy.deployments["house"].price.input_per_mtok == Decimal("0.10")
    assert policy.budgets[0].name == "team=support/day"
    assert policy.masking["standard"].columns == {"customer_name": "PERSON"}


def test_the_smallest_policy_has_careful_defaults() -> None:
    policy = parse_policy(SMALL)
    route, small = policy.route("support"), policy.deployments["small"]
    assert (route.masking, route.reuse.scope, route.escalate.to, route.default_tier) == ("off", "run", None, "simple")
    assert (small.requests_per_minute, small.tpm, small.timeout) == (DEFAULT_RPM, None, 60)
    assert (route.retry.attempts, route.retry.wait, route.retry.max_wait) == (3, 4.0, 60.0)


def test_a_price_may_have_steps_and_be_of_time() -> None:
    text = changed("mini}", f"mini, price: {{{BOTH}, per_second: 0.001, above: {{200000: {{input_per_mtok: 2}}}}}}}}")
    price = parse_policy(text).deployments["small"].price
    assert price is not None
    assert (price.per_second, price.above[200000].input_per_mtok) == (Decimal("0.001"), Decimal(2))
    timed = parse_policy(changed("mini}", "mini, price: {per_second: 0.001}}"))
    assert timed.deployments["small"].price is not None, "only time costs there"


def test_the_policy_of_the_demo_loads() -> None:
    assert load_policy(ROOT / "include" / "policy.yaml").routes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed("masking: off", "masking: off\n    colour: red"), ["p.yaml:8: routes.support.colour: unknown key"]),
        (changed("mini}", "mini, rmp: 5}"), ["p.yaml:3: deployments.small.rmp: unknown key"]),
        (SMALL + "extras: 1\n", ["p.yaml:10: extras: unknown key"]),
        (changed("    masking: off\n", ""), ["p.yaml:5: routes.support.masking: required, and not there"]),
        (changed("version: 1", "version: 2"), ["p.yaml:1: version: expected 1"]),
        (changed("period: day", "period: hour"), ["p.yaml:9: budgets.0.period: expected"]),
        (changed("openai/gpt-4o-mini", "gpt-4o-mini"), ["p.yaml:3: deployments.small.model: "]),
        (changed("mini}", "mini, rpm: 0}"), ["p.yaml:3: deployments.small.rpm: "]),
        (changed("limit_usd: 100", "limit_usd: -1"), ["p.yaml:9: budgets.0.limit_usd: "]),
        (changed("limit_usd: 100", "limit_usd: 0.0000000001"), ["p.yaml:9: budgets.0.limit_usd: "]),
        (
            changed("limit_usd: 100", "limit_usd: 1, timezone: Mars/Olympus"),
            ["p.yaml:9: budgets.0.timezone: 'Mars/Olympus'"],
        ),
        (changed("{simple: [small]}", "{}"), ["p.yaml:6: routes.support.tiers: expected at least one tier"]),
        (
            changed("{simple: [small]}", "{simple: []}"),
            ["p.yaml:6: routes.support.tiers: tier simple names no deployment"],
        ),
        (changed("{simple: [small]}", "{easy: [small]}"), ["p.yaml:6: routes.support.tiers.easy"]),
        (
            changed("mini}", "mini, params: {max_tokens: 5}}"),
            ["p.yaml:3: deployments.small.params: max_tokens cannot be set"],
        ),
        (changed("mini}", "mini, price: {}}"), ["p.yaml:3: deployments.small.price: names no price"]),
        (
            changed("mini}", "mini, price: {input_per_mtok: 1}}"),
            ["p.yaml:3: deployments.small.price: output_per_mtok is not given; write 0 if it is free"],
        ),
        (
            changed("mini}", "mini, price: {cache_write_per_mtok: 1, per_second: 1}}"),
            ["p.yaml:3: deployments.small.price: input_per_mtok and output_per_mtok is not given"],
        ),
        (
            changed("mini}", f"mini, price: {{{BOTH},\n    above: {{200000: {{inputs: 2}}}}}}}}"),
            ["p.yaml:4: deployments.small.price.above.200000.inputs: unknown key"],
        ),
        (
            changed("mini}", f"mini, price: {{{BOTH}, above: {{200000: {{}}}}}}}}"),
            ["p.yaml:3: deployments.small.price.above.200000: names no price"],
        ),
        (
            changed("mini}", f"mini, price: {{{BOTH}, above: {{0: {{output_per_mtok: 2}}}}}}}}"),
            ["p.yaml:3: deployments.small.price.above.0"],
        ),
        (changed("mini}", "mini, billing: nightly}"), ["p.yaml:3: deployments.small.billing: expected 'standard' or"]),
        (changed("mini}", "mini, params: {speed: fast}}"), ["p.yaml:3: deployments.small.params: speed cannot be set"]),
        (SMALL + "masking:\n  none: {}\n", ["p.yaml:11: masking.none: masks nothing"]),
        (SMALL + "masking:\n  m: {columns: {name: person}}\n", ["p.yaml:11: masking.m.columns.name: "]),
        (
            SMALL + "masking:\n  m:\n    detect: [email,\n      mail]\n",
            ["p.yaml:13: masking.m.detect.1: expected 'standard'"],
        ),
        (
            SMALL + "masking:\n  m:\n    patterns:\n      A_B: 'x'\n      CASE: '(?=x)y'\n",
            ["p.yaml:14: masking.m.patterns.CASE: not a pattern of RE2: invalid perl operator (RE2 has no lookaround"],
        ),
        (
            SMALL + "masking:\n  m: {patterns: {A_B: 'x*', CASE: '((a{99}){99}){9}', case: x}}\n",
            [
                "p.yaml:11: masking.m.patterns.A_B: the pattern matches the empty text",
                "p.yaml:11: masking.m.patterns.CASE: not a pattern of RE2: ",
                "p.yaml:11: masking.m.patterns.case.[key]: expected",
            ],
        ),
        (
            SMALL + "masking:\n  m:\n    detect: all\n    allow:\n    - fine\n    - /(/\n",
            ["p.yaml:15: masking.m.allow.1: not a pattern of RE2: missing )"],
        ),
        (
            SMALL + "masking:\n  m: {columns: {a: NAME}, skip: [b, a]}\n",
            ["p.yaml:11: masking.m: column 'a' stands under columns and under skip"],
        ),
        (SMALL + "masking:\n  m: {names: spacy}\n", ["p.yaml:11: masking.m.names: "]),
        (
            SMALL + "masking:\n  m: {detect: ip, confidence: high}\n",
            ["p.yaml:11: masking.m.confidence: expected 'vali"],
        ),
    ],
)
def test_a_wrong_place_is_named_with_its_line(text: str, expected: list[str]) -> None:
    found = problems(text)
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            changed("[small]", "[small, smal]"),
            "p.yaml:6: routes.support.tiers.simple.1: no deployment 'smal'; there are: small",
        ),
        (
            changed("masking: off", "masking: standrad"),
            "p.yaml:7: routes.support.masking: no masking profile 'standrad'; there are: none (or write off)",
        ),
        (
            changed("masking: off", "masking: off\n    complexity: {default: complex}"),
            "p.yaml:8: routes.support.complexity: the route has no tier 'complex'",
        ),
        (
            changed("masking: off", "masking: off\n    escalate: {to: medium}"),
            "p.yaml:8: routes.support.escalate: the route has no tier 'medium'",
        ),
        (
            changed("limit_usd: 100}", "limit_usd: 100, route: sales}"),
            "p.yaml:9: budgets.0.route: no route 'sales'",
        ),
        (
            SMALL + "  - {team: support, period: day, limit_usd: 5}\n",
            "p.yaml:10: budgets.1: a second budget team=support/day; keep one limit per scope and period",
        ),
    ],
)
def test_every_name_that_is_used_must_be_there(text: str, expected: str) -> None:
    assert problems(text) == [expected]


def routed(text: str) -> str:
    """The small policy with more keys of its route, which begin at line 8."""
    return changed("masking: off\n", f"masking: off\n{textwrap.indent(textwrap.dedent(text).strip(), '    ')}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "complexity: {from: learned}",
            "p.yaml:8: routes.support.complexity.from: learned routing is not there yet; expected 'column', 'rules' or",
        ),
        ("complexity: {from: rules}", "p.yaml:8: routes.support.complexity: expected rules, for example"),
        (
            "complexity: {rules: [{tier: simple}]}",
            "p.yaml:8: routes.support.complexity: rules and keywords are read with from: rules only",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {over_tokens: 9, tier: simple}\n  - {colour: red, tier: simple}",
            "p.yaml:12: routes.support.complexity.rules.1.colour: unknown key",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {schema: true,\n     tier: complex}",
            "p.yaml:12: routes.support.complexity.rules.0.tier: the route has no tier 'complex'",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {tier: simple}\n  - {schema: true, tier: simple}",
            "p.yaml:12: routes.support.complexity.rules.1: never reached: rules.0 takes all of its rows before it",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {over_tokens: 5, tier: simple}\n  - {images: true, tier: simple}"
            "\n  - {over_tokens: 9, files: true, tier: simple}",
            "p.yaml:13: routes.support.complexity.rules.2: never reached: rules.0 takes all of its rows before it",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - tier: simple\n  keywords: {simple: [hi]}",
            "p.yaml:12: routes.support.complexity.keywords: never reached: a rule without conditions takes every row",
        ),
        (
            "complexity:\n  from: rules\n  keywords: {complex: [hi]}",
            "p.yaml:10: routes.support.complexity.keywords.complex: the route has no tier 'complex'",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {language: en, tier: simple}",
            "p.yaml:11: routes.support.complexity.rules.0.language.0: letters do not tell 'en' from other languages of "
            "its script; write latin",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {language: klingon, tier: simple}",
            "p.yaml:11: routes.support.complexity.rules.0.language.0: expected 'zh', 'ja', 'ko'",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {columns: {a: {b: c}}, tier: simple}",
            "p.yaml:11: routes.support.complexity.rules.0.columns.a: expected a value, or a list of values",
        ),
        (
            "complexity:\n  from: rules\n  rules:\n  - {classification: secret, tier: simple}",
            "p.yaml:11: routes.support.complexity.rules.0.classification: no class 'secret'; the route's "
            "classification has: none",
        ),
        (
            "classification: {column: c, vendor: [a], self_hosted: [b, A]}",
            "p.yaml:8: routes.support.classification: class 'a' stands under vendor and under self_hosted",
        ),
        (
            "classification: {column: c, vendor: [a], default: b}",
            "p.yaml:8: routes.support.classification: the default 'b' stands neither under vendor nor under",
        ),
        ("classification: {column: c}", "p.yaml:8: routes.support.classification: names no class"),
        (
            "regions: [eu]",
            "p.yaml:8: routes.support.regions: tier simple has no deployment there: small (no region)",
        ),
        (
            "tier_options:\n  complex: {max_tokens: 5}",
            "p.yaml:9: routes.support.tier_options.complex: the route has no tier 'complex'",
        ),
        (
            "tier_options:\n  simple:\n    params: {stream: true}",
            "p.yaml:10: routes.support.tier_options.simple.params: stream cannot be set here",
        ),
        ("params: {n: 2}", "p.yaml:8: routes.support.params: n cannot be set here"),
    ],
)
def test_a_route_that_could_not_do_what_it_says_is_a_finding(text: str, expected: str) -> None:
    (problem,) = problems(routed(text))
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (
            "[{small: 90}]",
            "p.yaml:6: routes.support.tiers.simple.0: expected a deployment, or several with their weights",
        ),
        ("[{small: 1, b: x}]", "p.yaml:6: routes.support.tiers.simple.0: expected a deployment, or several with their"),
        (
            "[{small: 1, b: -1}]",
            "p.yaml:6: routes.support.tiers.simple.0: expected a deployment, or several with their",
        ),
        ("[small, 7]", "p.yaml:6: routes.support.tiers.simple.1: expected a deployment, or several with their weights"),
        ("[{small: 0, b: 0}]", "p.yaml:6: routes.support.tiers.simple.0: no weight is above 0"),
        ("[{small: 1, b: 1}, small]", "p.yaml:6: routes.support.tiers: tier simple names small twice"),
        ("{small: 1, b: 1}", "p.yaml:6: routes.support.tiers.simple.0: no deployment 'b'; there are: small"),
    ],
)
def test_a_split_names_deployments_with_weights(places: str, expected: str) -> None:
    (problem,) = problems(changed("[small]", places))
    assert problem.startswith(expected)


def test_a_split_stands_for_one_place_of_a_tier() -> None:
    route = parse_policy(changed("[small, house]", "[{small: 90, large: 10}, house]", FULL)).route("support")
    assert route.names("simple") == ("small", "large", "house")
    assert route.deployments == ("small", "large", "house")
    assert parse_policy(changed("[small]", "small")).route("support").names("simple") == ("small",)


def test_the_digest_knows_the_weights() -> None:
    texts = [changed("[small, house]", f"[{{small: {weight}, large: 10}}]", FULL) for weight in (90, 91)]
    assert len({parse_policy(text).digest for text in texts}) == 2


def test_a_route_names_the_columns_that_rows_must_have() -> None:
    text = routed("""
        classification: {column: class, vendor: [public]}
        complexity: {from: rules, rules: [{columns: {plan: gold, n: [1, 2]}, tier: simple}]}
    """)
    needed = parse_policy(text).route("support").needed_columns
    assert needed == {"class": "classification.column", "plan": "complexity.rules", "n": "complexity.rules"}
    assert parse_policy(SMALL).route("support").needed_columns == {}


def test_all_findings_come_at_once_in_the_order_of_the_file() -> None:
    text = (
        changed("mini}", "mini, rmp: 5}").replace("period: day", "period: hour").replace("masking: off", "maskin: off")
    )
    assert [line.split(": ")[0] for line in problems(text)] == ["p.yaml:3", "p.yaml:5", "p.yaml:7", "p.yaml:9"]


def test_findings_stand_in_the_order_of_their_lines_also_past_line_ten() -> None:
    lines = [
        int(line.split(":")[1]) for line in problems(changed("[small", "[small, a, b", FULL).replace("day", "hour"))
    ]
    assert lines == sorted(lines)


def test_no_finding_holds_a_value_that_might_be_a_secret() -> None:
    for text in (changed("mini}", "mini, rpm: sk-secret}"), changed("mini}", "mini, timeout: sk-secret}")):
        assert "sk-secret" not in "\n".join(problems(text))


@pytest.mark.parametrize("word", ["off", "no", "on", "yes"])
def test_off_is_a_word_and_not_a_boolean(word: str) -> None:
    text = changed("masking: off", f"masking: {word}") + f"masking:\n  {word}: {{detect: [email]}}\n"
    assert parse_policy(text).route("support").masking == word
    assert (
        parse_policy(changed("masking: off", "masking: off\n    reuse: {scope: off}")).route("support").reuse.scope
        == "off"
    )


def test_true_and_false_are_booleans() -> None:
    params = (
        parse_policy(changed("mini}", "mini, params: {store: true, echo: False, user: on}}"))
        .deployments["small"]
        .params
    )
    assert params == {"store": True, "echo": False, "user": "on"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (SMALL + "version: 1\n", 10),
        (changed("mini}", "mini, model: a/b}"), 3),
        (changed("masking: off", "masking: off\n    masking: off"), 8),
    ],
)
def test_a_key_given_twice_is_refused(text: str, line: int) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"p.yaml:{line}: key '")
    assert problem.endswith("' stands twice")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- 1\n", "7", "null"])
def test_a_file_that_is_no_mapping_is_told_what_is_expected(text: str) -> None:
    assert problems(text) == ["p.yaml:1: expected a mapping with version, deployments, routes and budgets"]


@pytest.mark.parametrize(
    "text", ["version: [1\n", "a: b: c\n", "\tversion: 1", "version: 1\n--- \nversion: 1\n", "a: *b"]
)
def test_text_that_is_no_yaml_has_its_line(text: str) -> None:
    (problem,) = problems(text)
    assert problem.split(":")[:1] == ["p.yaml"]
    assert problem.split(":")[1].isdigit()


def test_python_objects_are_not_made() -> None:
    (problem,) = problems(changed("version: 1", "version: !!python/object/apply:os.getcwd []"))
    assert problem.startswith("p.yaml:1: could not determine a constructor")


PIECES = (
    """version|: |1|  |- |{|}|[|]|, |&a |*a|? |<<: |!!int |!!set |2026-13-45|0x|1:99|off|~|'|"|deployments|routes|#"""
)
pieces = st.sampled_from([*PIECES.split("|"), "|\n", "\n", "\x00", "\ud800"])


@given(st.lists(pieces, max_size=14).map("".join) | st.text(max_size=40))
@example("? [a]\n: 1\n")
@example("version: 2026-13-45")
@example("{a: 1}: 2")
@example("a: &a [*a]")
@example("version: !!int x")
@example("[" * 3000)
@example("!!timestamp x: 1")
def test_whatever_the_text_it_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        found: object = parse_policy(text)
    except PolicyError as error:
        found = error
    assert isinstance(found, Policy) or str(found).startswith("policy.yaml")


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"p\.yaml: no policy file there; set \[ai\] policy_path"):
        load_policy(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match=r"p\.yaml: cannot be read .*UTF-8"):
        load_policy(tmp_path / "p.yaml")


@pytest.mark.parametrize(("written", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604800)])
def test_durations(written: str, seconds: int) -> None:
    assert parse_policy(changed("mini}", f"mini, timeout: {written}}}")).deployments["small"].timeout == seconds


@pytest.mark.parametrize("written", ["-1", "1.5", "1w", "h", "''"])
def test_other_durations_are_refused(written: str) -> None:
    (problem,) = problems(changed("mini}", f"mini, timeout: {written}}}"))
    assert problem.startswith("p.yaml:3: deployments.small.timeout: ")


def test_a_time_limit_of_nothing_that_no_request_could_keep_is_refused() -> None:
    (problem,) = problems(changed("mini}", "mini, timeout: 0}"))
    assert problem.startswith("p.yaml:3: deployments.small.timeout: ")


@pytest.mark.parametrize(("written", "usd"), [("0.1", "0.1"), ("1e-6", "0.000001"), ("'0.3'", "0.3"), ("5", "5")])
def test_money_is_what_is_written(written: str, usd: str) -> None:
    policy = parse_policy(changed("limit_usd: 100", f"limit_usd: {written}"))
    assert policy.budgets[0].limit_usd == Decimal(usd)


def test_an_unknown_route_names_those_there_are() -> None:
    with pytest.raises(PolicyError, match="route 'sales' is not in the policy; it has: support"):
        parse_policy(SMALL).route("sales")


def test_a_call_that_no_budget_limits_is_refused() -> None:
    policy = parse_policy(SMALL)
    assert len(policy.budgets_for(team="support", dag="d", route="support")) == 1
    with pytest.raises(PolicyError, match=r"no budget applies to team 'sales' .*add one under budgets"):
        policy.budgets_for(team="sales", dag="d", route="support")


def test_every_budget_whose_scope_fits_applies() -> None:
    more = "  - {period: month, limit_usd: 9}\n  - {dag: d, route: support, period: run, limit_usd: 1}\n"
    policy = parse_policy(SMALL + more)
    names = [budget.name for budget in policy.budgets_for(team="support", dag="d", route="support")]
    assert names == ["team=support/day", "organisation/month", "dag=d&route=support/run"]
    assert [b.name for b in policy.budgets_for(team="x", dag="y", route="z")] == ["organisation/month"]


@pytest.mark.parametrize(("asked", "got"), [("simple", "medium"), ("medium", "medium"), ("complex", "medium")])
def test_a_tier_the_route_lacks_is_the_next_one_up_or_its_highest(asked: Any, got: str) -> None:
    route = Route(tiers={"medium": ("small",)}, masking="off")
    assert (route.tier_at_least(asked), route.default_tier) == (got, "medium")


def test_the_offline_model_is_not_slowed_down() -> None:
    assert Deployment(model="offline/extractive").requests_per_minute is None


def test_the_digest_follows_the_meaning_and_not_the_writing() -> None:
    same = parse_policy(
        textwrap.dedent(SMALL.replace("{simple: [small]}", "\n      simple:\n        - small")) + "# note\n"
    )
    assert same.digest == parse_policy(SMALL).digest
    assert parse_policy(changed("limit_usd: 100", "limit_usd: 101")).digest != same.digest


@pytest.mark.parametrize(
    ("dag", "team", "columns", "allowed"),
    [
        ("d", "t", ["iban"], True),
        ("d", "t", ["iban", "phone"], False),
        ("d", "t", None, False),
        ("d", "other", ["iban"], False),
        ("other", "t", ["iban"], False),
        ("all", "t", None, True),
        ("all", "t", ["anything"], True),
    ],
)
def test_a_grant_covers_what_it_names_and_no_more(
    dag: str, team: str, columns: list[str] | None, allowed: bool
) -> None:
    text = """\
version: 1
deployments: {a: {model: offline/extractive}}
routes: {r: {tiers: {simple: [a]}, masking: "off"}}
budgets: [{limit_usd: 1, period: day}]
privacy: {decrypt: [{dag: d, team: t, columns: [iban]}, {dag: d, team: t, columns: [phone]}, {dag: all, team: t}]}
"""
    policy = parse_policy(text)
    if allowed:
        policy.require_grant("decrypt", dag=dag, team=team, columns=columns)
    else:
        with pytest.raises(PolicyError, match=f"DAG '{dag}' has no permission to decrypt for team '{team}'"):
            policy.require_grant("decrypt", dag=dag, team=team, columns=columns)
    with pytest.raises(PolicyError, match="no permission to restore"):
        policy.require_grant("restore", dag=dag, team=team, columns=columns)


def test_a_masking_profile_holds_what_is_written() -> None:
    text = """
    masking:
      m:
        detect: standard
        confidence: validated
        patterns: {EMPLOYEE: 'E-\\d{6}'}
        allow: [400-820-8888, '/.*@bank\\.example/']
        skip: [order_no]
        names: house.names:find
    """
    profile = parse_policy(SMALL + textwrap.dedent(text)).masking["m"]
    assert profile.detect == ("standard",)
    assert (profile.confidence, profile.skip, profile.names) == ("validated", ("order_no",), "house.names:find")
    assert profile.patterns == {"EMPLOYEE": r"E-\d{6}"}
    assert profile.allow == ("400-820-8888", r"/.*@bank\.example/")
