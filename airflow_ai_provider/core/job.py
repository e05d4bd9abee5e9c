"""What is asked, and who asks: the values an operator hands to the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.rows.shard import Shard

if TYPE_CHECKING:
    from pydantic import BaseModel

Row = Mapping[str, Any]
Message = Mapping[str, Any]
"""``{"role": "system" | "user" | "assistant", "content": str | list of parts}``; see ``messages.py``."""
RowPrompt = Callable[[Row], "str | Sequence[Message]"]
"""A function from a row to its prompt, or to whole messages."""
Prompt = str | Sequence[Message] | RowPrompt
"""A template, messages whose texts and URIs are templates, or a function."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The task instance on whose behalf calls are made; recorded with every one of them.

    A person at the command line has no task instance, and empty names in its place.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int = 1
    user: str = ""
    account: str = ""
    """Operating system account of a person at the command line."""


@dataclass(frozen=True, slots=True)
class MapJob:
    """One prompt over every row of a source."""

    source: str
    sink: str
    prompt: Prompt
    """A sandboxed Jinja template over the row's columns, ``file:PATH`` of one, messages of templates, or a function."""
    key: str
    """Column that names a row, unique in the source; ``#row`` is the row's number, for files without one."""
    team: str
    route: str
    system_prompt: str | None = None
    output_schema: Mapping[str, Any] | None = None
    """JSON schema the answer must satisfy."""
    output_model: type[BaseModel] | None = None
    """Pydantic model that the answer must satisfy as well; ``output_schema`` is then its schema."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions the model may call, as OpenAI defines them; see ``tools.py``."""
    tool_choice: str | Mapping[str, Any] | None = None
    shard: Shard = field(default_factory=lambda: Shard(0, 1))
    max_tokens: int | None = None
    """Output limit in tokens; ``None`` takes the route's."""
    batch_rows: int = 250
    """Rows per batch, and per part of the sink."""
    give_up_after: int | None = 50
    """Rows that end alike, none being good, after which the job is given up; ``None`` is never."""


@dataclass(frozen=True, slots=True)
class MapSummary:
    """What came of a job; small enough for XCom, free of row data. Counts are rows."""

    sink: str
    rows: int
    ok: int
    reused: int
    """Rows of ``ok`` that were answered from the response store."""
    rejected: int
    over_budget: int
    error: int
    skipped: int
    """Rows in parts that an earlier try had finished; counted in the figures above as well."""
    input_tokens: int
    output_tokens: int
    cost_usd: str
    """What this try added to the ledger, as a decimal string."""
    saved_usd: str
    seconds: float
    errors: Mapping[str, int] = field(default_factory=dict)
    """Rows by kind of error."""
    short_usd: str = "0"
    """Room that the rows over budget would have needed, as a decimal string."""
    over_budget_then: str = "stop"
    """What the route says of such rows: ``stop``, ``cheaper`` or ``wait``."""
    cached_input_tokens: int = 0
    """Of ``input_tokens``, those that the vendor had in its cache."""
