"""policy.yaml: parsed and validated as a whole before any work begins."""

from __future__ import annotations

from airflow_ai_provider.core.policy.budgets import Budget, LedgerRules, Team
from airflow_ai_provider.core.policy.deployments import DEFAULT_RPM, Breaker, Deployment, Price, PriceAbove
from airflow_ai_provider.core.policy.fields import (
    RESERVED_PARAMS,
    TIERS,
    Language,
    Tier,
    advice,
    as_word,
    remedies,
    reserved,
    undeclared,
)
from airflow_ai_provider.core.policy.masking import NO_MASKING, EntityName, Grant, MaskingProfile, Privacy
from airflow_ai_provider.core.policy.policy import Policy, load_policy, parse_budget, parse_policy
from airflow_ai_provider.core.policy.routes import (
    Attachments,
    Classification,
    Complexity,
    Deadline,
    Escalate,
    Place,
    Retry,
    Reuse,
    Route,
    Rule,
    TierOptions,
)
from airflow_ai_provider.core.policy.yaml_document import parse_document, read_document

__all__ = [
    "DEFAULT_RPM",
    "NO_MASKING",
    "RESERVED_PARAMS",
    "TIERS",
    "Attachments",
    "Breaker",
    "Budget",
    "Classification",
    "Complexity",
    "Deadline",
    "Deployment",
    "EntityName",
    "Escalate",
    "Grant",
    "Language",
    "LedgerRules",
    "MaskingProfile",
    "Place",
    "Policy",
    "Price",
    "PriceAbove",
    "Privacy",
    "Retry",
    "Reuse",
    "Route",
    "Rule",
    "Team",
    "Tier",
    "TierOptions",
    "advice",
    "as_word",
    "load_policy",
    "parse_budget",
    "parse_document",
    "parse_policy",
    "read_document",
    "remedies",
    "reserved",
    "undeclared",
]
