"""From a row to a masked request: render, mask, route. Pure CPU; nothing here waits or costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.gateway.job import Message, Row
from airflow_ai_provider.gateway.render import Renderer
from airflow_ai_provider.gateway.routing import Needs, Router, Terms
from airflow_ai_provider.policy import NO_MASKING, MaskingProfile, Policy, Route, Tier
from airflow_ai_provider.privacy.keyring import Keyring
from airflow_ai_provider.privacy.masking import Masker, MaskingRules, RowMask
from airflow_ai_provider.privacy.restoring import TokenReport

_TOKENS_PURPOSE = "tokens"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row's request, ready to leave the house."""

    row_key: str
    tier: Tier
    routed_by: str
    needs: Needs
    messages: Sequence[Message] = field(repr=False)
    """Masked."""
    text: str = field(repr=False)
    """All of the masked text."""
    size: int
    """UTF-8 bytes of ``text``."""
    mask: RowMask | None = field(repr=False)
    systems: Mapping[Tier, str | None] = field(repr=False)
    """Each tier's system prompt."""
    system: str | None = field(repr=False)
    """The one in ``messages``."""

    def at(self, tier: Tier) -> Prepared:
        """The row as a tier asks it: with that tier's system prompt."""
        system = self.systems[tier]
        if system == self.system:
            return self
        body = self.messages[1:] if self.system else self.messages
        messages = [*_masked(self.mask, _system(system)), *body]
        text, size = _text(messages)
        needs = replace(self.needs, size=size)
        return replace(self, messages=messages, text=text, size=size, needs=needs, system=system)

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

    def __init__(
        self,
        renderer: Renderer,
        route: Route,
        masker: Masker | None,
        router: Router,
        terms: Mapping[Tier, Terms],
        *,
        json: bool,
    ) -> None:
        """``json`` says whether answers are asked for by a schema."""
        self._renderer = renderer
        self._route = route
        self._masker = masker
        self._router = router
        self._systems = {tier: found.system_prompt for tier, found in terms.items()}
        self._json = json

    def prepare(self, row: Row, row_key: str) -> Prepared:
        """Raises ``PromptError`` or ``PrivacyError``: the row gets no call."""
        messages = self._renderer.messages(row)
        # Where no answer is shared, no two rows need tokens in common.
        record = row_key if self._route.shares_nothing else None
        mask = self._masker.for_row(row, record) if self._masker else None
        messages = _masked(mask, messages)
        text, size = _text(messages)
        needs = Needs(size, json=self._json, classification=self._router.classify(row))
        choice = self._router.choose(row, text, needs)
        system, systems = self._renderer.system, self._systems
        found = Prepared(row_key, choice.tier, choice.routed_by, needs, messages, text, size, mask, systems, system)
        return found.at(choice.tier)


def _system(prompt: str | None) -> list[dict[str, Any]]:
    return [{"role": "system", "content": prompt}] if prompt else []


def _masked(mask: RowMask | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if mask is None:
        return messages
    masked = [{**message, "content": mask.mask(message["content"])} for message in messages]
    for message in masked:
        mask.check(message["content"])
    return masked


def _text(messages: Sequence[Message]) -> tuple[str, int]:
    """All of the text, and its UTF-8 bytes."""
    text = "\n".join(message["content"] for message in messages)
    try:
        return text, len(text.encode())
    except UnicodeEncodeError:
        raise PrivacyError("the prompt holds half of a surrogate pair and cannot be sent as UTF-8") from None


def open_masker(policy: Policy, route: Route, keyring: Keyring, *, team: str, scope: str) -> Masker | None:
    """The masker of a route, or ``None`` where the policy says ``masking: off`` in so many words."""
    if route.masking == NO_MASKING:
        return None
    return profile_masker(policy.masking[route.masking], keyring, team=team, scope=scope)


def profile_masker(profile: MaskingProfile, keyring: Keyring, *, team: str, scope: str) -> Masker:
    """The masker of a profile: a team's own key, so that two teams have no token in common."""
    rules = MaskingRules.of(profile)
    return Masker(rules, keyring.derive(_TOKENS_PURPOSE, team), scope)
