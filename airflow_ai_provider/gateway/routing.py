"""What a row's request needs of a deployment, and the tier that was chosen for it."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_ai_provider.policy import Tier


@dataclass(frozen=True, slots=True)
class Needs:
    """Of one row's request."""

    size: int
    """UTF-8 bytes of its text."""
    images: int = 0
    files: int = 0
    json: bool = False
    tools: bool = False
    classification: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A tier, and what chose it."""

    tier: Tier
    routed_by: str
    """At most 40 characters."""
