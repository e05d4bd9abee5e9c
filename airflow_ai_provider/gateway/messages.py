"""The shape of messages, as a DAG's author writes them or a prompt function returns them.

    {"role": "user", "content": "text"}
    {"role": "user", "content": [{"type": "text", "text": "text"},
                                 {"type": "image", "uri": "s3://bucket/scan.png"},
                                 {"type": "file", "uri": "/data/letters/7.pdf"}]}

Roles are ``system``, ``user`` and ``assistant``; an image or a file stands in a message of the user. What is wrong is
named by place and never by content, which may be a row's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROLES = ("system", "user", "assistant")
ATTACHED = ("image", "file")
"""Types of parts that are named by a URI."""
EXAMPLE = '[{"role": "user", "content": "…"}]'


def shape_problem(messages: object) -> str | None:
    """What is wrong with messages; ``None`` if nothing is."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        return f"expected messages such as {EXAMPLE}"
    for number, message in enumerate(messages):
        if problem := _message_problem(message):
            return f"message {number}: {problem}"
    return None


def _message_problem(message: object) -> str | None:
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        return "expected role and content, and nothing else"
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"role: expected one of {', '.join(ROLES)}"
    if isinstance(content, str):
        return None
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        return "content: expected text, or a list of parts"
    problems = (_part_problem(part, role) for part in content)
    return next((f"part {number}: {problem}" for number, problem in enumerate(problems) if problem), None)


def _part_problem(part: object, role: str) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", *ATTACHED):
        return f"type: expected one of text, {', '.join(ATTACHED)}"
    assert isinstance(part, Mapping)
    field = "text" if kind == "text" else "uri"
    if part.keys() != {"type", field} or not isinstance(part[field], str):
        return f"expected type and {field}, both text"
    if kind != "text" and role != "user":
        return f"type {kind}: only a message of the user can hold one"
    return None
