"""From a row to a masked request: render, mask, route. Pure CPU, but for attachments, which are read off the loop.

Nothing here costs money. The texts that are the same for every row are looked through once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_ai_provider.core.errors import PrivacyError, PromptError
from airflow_ai_provider.core.job import Message, Row
from airflow_ai_provider.core.policy import NO_MASKING, MaskingProfile, Policy, Route, Tier
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules, RowMask
from airflow_ai_provider.core.privacy.masking.tokens import PURPOSE as TOKENS_PURPOSE
from airflow_ai_provider.core.privacy.masking.tokens import TokenReport
from airflow_ai_provider.core.prompts.attachments import Attachment, AttachmentReader, references, with_parts
from airflow_ai_provider.core.prompts.templates import Renderer
from airflow_ai_provider.core.routing.router import Needs, Router, Terms

_Place = tuple[int, int]
"""Of a part: the number of its message, and its own number in it."""


@dataclass(frozen=True, slots=True)
class RowRequest:
    """A row's request, masked: what may be sent to a vendor."""

    row_key: str
    tier: Tier
    messages: Sequence[Message] = field(repr=False)
    """Masked. An attachment stands in them as the hash of its content: equal messages ask the same."""
    text: str = field(repr=False)
    """All of the masked text."""
    size: int
    """UTF-8 bytes of ``text``."""
    mask: RowMask | None = field(repr=False)
    needs: Needs
    routed_by: str
    """What chose the tier."""
    systems: Mapping[Tier, str | None] = field(repr=False)
    """Each tier's system prompt."""
    system: str | None = field(repr=False)
    """The one in ``messages``."""
    attachments: Mapping[_Place, Attachment] = field(default_factory=dict, repr=False)
    """To be read, by where they stand in ``messages``."""
    reader: AttachmentReader | None = field(default=None, repr=False)

    @property
    def evidence(self) -> str:
        """What was asked, as the trail hashes it: the text, and the hashes of attachments."""
        hashes = [str(self.messages[n]["content"][part].get("sha256", "")) for n, part in self.attachments]
        return "\n".join((self.text, *hashes))

    async def wire_messages(self) -> Sequence[Message]:
        """The messages with the contents of attachments in them: to be made just before the call, and let go after.

        Raises ``PromptError`` or ``PrivacyError`` where an attachment cannot be read any more, or is another one now.
        """
        if not self.attachments:
            return self.messages
        assert self.reader is not None
        made = {}
        for place, attachment in self.attachments.items():  # one by one: a row's are in memory together anyway
            made[place] = await self.reader.inlined(attachment, self.messages[place[0]]["content"][place[1]])
        return with_parts(self.messages, made)

    def at(self, tier: Tier) -> RowRequest:
        """Return the request as a tier asks it: with that tier's system prompt. Raises ``PrivacyError``."""
        system = self.systems[tier]
        if system == self.system:
            return self
        body = self.messages[1:] if self.system else self.messages
        head = [{"role": "system", "content": _masked(self.mask, system)}] if system else []
        messages = [*head, *body]
        text, size = _text(messages)
        moved = len(head) - (1 if self.system else 0)
        attachments = {(number + moved, part): one for (number, part), one in self.attachments.items()}
        needs = replace(self.needs, size=size)
        return replace(
            self, messages=messages, text=text, size=size, needs=needs, system=system, attachments=attachments
        )

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
        tools: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """``json`` and ``tools`` say whether the job has an output schema, and tools."""
        self._renderer = renderer
        self._masker = masker
        self._router = router
        self._systems = {tier: found.system_prompt for tier, found in terms.items()}
        self._one_system = {*self._systems.values()} == {renderer.system}
        self._json, self._tools = json, tools
        self._reader = AttachmentReader(route.attachments, storage_options)
        # Where no answer is shared, no two rows need tokens in common.
        self._apart = route.shares_nothing
        if masker is not None:
            masker.expect([*renderer.constants, *filter(None, self._systems.values())])

    async def prepare_many(
        self, rows: Sequence[Row], row_keys: Sequence[str]
    ) -> list[RowRequest | PromptError | PrivacyError]:
        """The request of each row, or why it gets no call; attachments are read once, for their hashes."""
        made = [self._tried(row, key) for row, key in zip(rows, row_keys, strict=True)]
        with_some = [n for n, one in enumerate(made) if isinstance(one, RowRequest) and one.attachments]
        if with_some:
            hashed = await asyncio.gather(*(self._hashed(made[number]) for number in with_some))
            for number, one in zip(with_some, hashed, strict=True):
                made[number] = one
        return made

    def prepare(self, row: Row, row_key: str) -> RowRequest:
        """The request of one row, its attachments not read yet: in the messages stand their URIs.

        Raises ``PromptError`` or ``PrivacyError``: the row gets no call.
        """
        messages = self._renderer.messages(row)
        mask = self._masker.for_row(row, row_key if self._apart else None) if self._masker else None
        masked: list[Message] = []
        plain = True
        for message in messages:
            content = message["content"]
            if type(content) is str:
                masked.append({"role": message["role"], "content": _masked(mask, content)})
            else:
                plain = False
                masked.append({"role": message["role"], "content": [_masked_part(mask, part) for part in content]})
        made = self._routed(row, row_key, masked, mask) if plain else self._attached(row, row_key, masked, mask)
        return made if self._one_system else made.at(made.tier)

    def _tried(self, row: Row, row_key: str) -> RowRequest | PromptError | PrivacyError:
        try:
            return self.prepare(row, row_key)
        except (PromptError, PrivacyError) as error:
            return error.with_traceback(None)  # it would keep the row

    async def _hashed(self, prepared: RowRequest | Exception) -> RowRequest | PromptError | PrivacyError:
        assert isinstance(prepared, RowRequest)
        try:
            parts = {place: await self._reader.hashed(one) for place, one in prepared.attachments.items()}
        except (PromptError, PrivacyError) as error:
            return error.with_traceback(None)
        return replace(prepared, messages=with_parts(prepared.messages, parts))

    def _attached(self, row: Row, row_key: str, messages: Sequence[Message], mask: RowMask | None) -> RowRequest:
        counts = {"image": 0, "file": 0}
        attachments: dict[_Place, Attachment] = {}
        on_the_wire: dict[_Place, Mapping[str, Any]] = {}
        for number, index, part in references(messages):
            kind = part["type"]
            counts[kind] += 1
            made = self._reader.refer(kind, part["uri"], f"{kind} {counts[kind]}", _unmasked_by(mask))
            if isinstance(made, Attachment):
                attachments[number, index] = made
            else:
                on_the_wire[number, index] = made
        messages = with_parts(messages, on_the_wire)
        prepared = self._routed(row, row_key, messages, mask, images=counts["image"], files=counts["file"])
        return replace(prepared, attachments=attachments, reader=self._reader)

    def _routed(
        self,
        row: Row,
        row_key: str,
        messages: Sequence[Message],
        mask: RowMask | None,
        images: int = 0,
        files: int = 0,
    ) -> RowRequest:
        text, size = _text(messages)
        needs = Needs(size, images, files, self._json, self._tools, self._router.classify(row))
        choice = self._router.choose(row, text, needs)
        systems, system = self._systems, self._renderer.system
        return RowRequest(row_key, choice.tier, messages, text, size, mask, needs, choice.routed_by, systems, system)


def _masked(mask: RowMask | None, text: str) -> str:
    return text if mask is None else mask.masked(text)


def _masked_part(mask: RowMask | None, part: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "text", "text": _masked(mask, part["text"])} if part["type"] == "text" else part


def _unmasked_by(mask: RowMask | None) -> Callable[[str], bool]:
    """Whether masking would leave a text as it is."""
    return lambda text: _masked(mask, text) == text


def _text(messages: Sequence[Message]) -> tuple[str, int]:
    """All of the text, and its UTF-8 bytes."""
    texts: list[str] = []
    for message in messages:
        content = message["content"]
        if type(content) is str:
            texts.append(content)
        else:
            texts += [part["text"] for part in content if part["type"] == "text"]
    text = "\n".join(texts)
    try:
        return text, len(text) if text.isascii() else len(text.encode())
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
    return Masker(rules, keyring.derive(TOKENS_PURPOSE, team), scope)
