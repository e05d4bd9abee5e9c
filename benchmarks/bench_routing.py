"""CPU of routing a row, beside litellm's complexity scorer on the same prompts.

    bench_routing.py

A prompt of 1,000 characters, in English and in Chinese; the tier by a constant, a column, six rules, six rules and
keywords; then the order of deployments, plain and by weight. The best of several rounds, in microseconds of process
time, and as a share of one ``ComplexityRouter.classify`` of litellm, which scores keywords.

The script fails where a constant or a column takes more than 5 µs, or rules take more than 20 µs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_ai_provider.core.ledger.prices import ModelFacts, model_facts
from airflow_ai_provider.core.policy import Deployment, parse_policy
from airflow_ai_provider.core.routing.router import Needs, Router

_ENGLISH = ("Please help me with my order, it has not arrived in Berlin yet. " * 20)[:1000]
_CHINESE = ("请帮我查一下订单 1234 的物流，已经等了三天了。" * 40)[:1000]
_RULES = """[
      {over_tokens: 40000, tier: complex},
      {images: true, tier: complex},
      {schema: true, over_bytes: 100000, tier: complex},
      {classification: secret, tier: complex},
      {columns: {priority: [high, urgent]}, tier: complex},
      {language: [ja], tier: complex}]"""
_KEYWORDS = (
    "{complex: [prove, derive, step by step, theorem, integral, optimise, refactor, 证明], simple: [list, sort]}"
)
_POLICY = f"""
version: 1
deployments:
  small: {{model: openai/gpt-4o-mini}}
  large: {{model: openai/gpt-4o}}
routes:
  constant: &plain
    masking: "off"
    tiers: {{simple: [small, large], complex: [large]}}
    classification: {{column: class, vendor: [internal], self_hosted: [secret]}}
  column: {{<<: *plain, complexity: {{from: column}}}}
  rules: {{<<: *plain, complexity: {{from: rules, rules: {_RULES}}}}}
  keywords: {{<<: *plain, complexity: {{from: rules, rules: {_RULES}, keywords: {_KEYWORDS}}}}}
  weights: {{<<: *plain, tiers: {{simple: [{{small: 90, large: 10}}]}}}}
budgets: [{{period: day, limit_usd: 1}}]
"""
_ROW = {"difficulty": "complex", "priority": "low", "class": "internal"}
_LIMITS = {"constant": 5.0, "column": 5.0, "rules": 20.0, "keywords": 20.0}
_ROUNDS, _CALLS = 7, 5_000


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    deployment: Deployment
    facts: ModelFacts


def main() -> int:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    scorer, good = _scorer(), True
    print(f"{'':28}{'µs a row':>10}{'of litellm':>12}")
    for language, text in (("English", _ENGLISH), ("Chinese", _CHINESE)):
        needs = Needs(len(text.encode()), classification="internal")
        peer = _scoring(scorer, text)
        print(f"{language + ': litellm':28}{peer:10.2f}{1:12.3f}")
        for name, limit in _LIMITS.items():
            taken = _choosing(name, text, needs)
            good &= taken <= limit
            print(f"{f'{language}: {name}':28}{taken:10.2f}{taken / peer:12.3f}")
    for name in ("constant", "weights"):
        print(f"{f'order: {name}':28}{_ordering(name):10.2f}")
    return 0 if good else 1


def _ordering(name: str) -> float:
    router, needs = _router(name), Needs(1000, classification="internal")
    return _microseconds(lambda: router.order("simple", needs, "r1"))


def _scoring(scorer: Callable[[str], Any], text: str) -> float:
    return _microseconds(lambda: scorer(text), calls=200)


def _choosing(name: str, text: str, needs: Needs) -> float:
    router = _router(name)
    return _microseconds(lambda: router.choose(_ROW, text, needs))


def _router(name: str) -> Router:
    policy = parse_policy(_POLICY)
    route = policy.route(name)
    known = {
        each: _Known(each, deployment, model_facts(each, deployment, policy.digest))
        for each, deployment in policy.deployments.items()
    }
    return Router(name, route, {tier: [known[each] for each in route.names(tier)] for tier in route.tiers})


def _scorer() -> Callable[[str], Any]:
    from litellm import Router as LitellmRouter
    from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter

    models = [{"model_name": "m", "litellm_params": {"model": "openai/gpt-4o-mini", "api_key": "none"}}]
    return ComplexityRouter("auto", LitellmRouter(model_list=models)).classify


def _microseconds(act: Callable[[], object], calls: int = _CALLS) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.process_time()
        for _ in range(calls):
            act()
        best = min(best, (time.process_time() - started) / calls)
    return best * 1e6


if __name__ == "__main__":
    sys.exit(main())
