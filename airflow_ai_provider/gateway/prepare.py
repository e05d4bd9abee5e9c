"""From a row to a masked request: render, mask, route. Pure CPU; nothing here waits or costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.gateway.job import Message, Row
from airflow_ai_provider.gateway.render import Renderer
from airflow_ai_provider.policy import NO_MASKING, TIERS, MaskingProfile, Policy, Route, Tier
from airflow_ai_provider.privacy.keyring import Keyring
from airflow_ai_provider.privacy.masking import Masker, MaskingRules, RowMask
from airflow_ai_provider.privacy.restoring import TokenReport
from airflow_ai_provider.privacy.tokens import PURPOSE as TOKENS_PURPOSE


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row's request, ready to leave the house."""

    row_key: str
    tier: Tier
    messages: Sequence[Message] = field(repr=False)
    """Masked."""
    text: str = field(repr=False)
    """All of the masked text."""
    size: int
    """UTF-8 bytes of ``text``."""
    mask: RowMask | None = field(repr=False)

    def restored(self, answer: str) -> str:
        """The answer with this row's own values in place of its tokens; JSON stays JSON.

        Raises ``PrivacyError``.
        """
        if self.mask is None or not self.mask.tokens:
            return answer
        restored: str = self.mask.restore_value(answer)
        return restored

    def report(self, answer: str) -> TokenReport:
        """What the answer made of this row's tokens. Raises ``PrivacyError``."""
        return self.mask.report(answer) if self.mask else TokenReport()


class Preparer:
    """Renders, masks and routes the rows of one job."""

    def __init__(self, renderer: Renderer, route: Route, masker: Masker | None) -> None:
        self._renderer = renderer
        self._route = route
        self._masker = masker

    def prepare(self, row: Row, row_key: str) -> Prepared:
        """Raises ``PromptError`` or ``PrivacyError``: the row gets no call."""
        messages = self._renderer.messages(row)
        # Where no answer is shared, no two rows need tokens in common.
        record = row_key if self._route.shares_nothing else None
        mask = self._masker.for_row(row, record) if self._masker else None
        if mask is not None:
            messages = [{**message, "content": mask.mask(message["content"])} for message in messages]
            for message in messages:
                mask.check(message["content"])
        text = "\n".join(message["content"] for message in messages)
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise PrivacyError("the prompt holds half of a surrogate pair and cannot be sent as UTF-8") from None
        return Prepared(row_key, tier_of(row, self._route), messages, text, size, mask)


def tier_of(row: Row, route: Route) -> Tier:
    """The tier a row asks for, or the route's default where it asks for none or for what there is not."""
    wanted: Any = row.get(route.complexity.column) if route.complexity.from_ == "column" else None
    name = str(wanted).strip().lower() if wanted is not None else ""
    found = next((tier for tier in TIERS if tier == name), None)
    return route.tier_at_least(found) if found else route.default_tier


def open_masker(policy: Policy, route: Route, keyring: Keyring, *, team: str, scope: str) -> Masker | None:
    """The masker of a route, or ``None`` where the policy says ``masking: off`` in so many words."""
    if route.masking == NO_MASKING:
        return None
    return profile_masker(policy.masking[route.masking], keyring, team=team, scope=scope)


def profile_masker(profile: MaskingProfile, keyring: Keyring, *, team: str, scope: str) -> Masker:
    """The masker of a profile: a team's own key, so that two teams have no token in common."""
    rules = MaskingRules.of(profile)
    return Masker(rules, keyring.derive(TOKENS_PURPOSE, team), scope)
