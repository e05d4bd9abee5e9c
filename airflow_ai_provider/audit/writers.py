"""Names of writers: unique, in the order of time, and with a sign of the host they wrote on."""

from __future__ import annotations

import secrets
import socket
from datetime import datetime
from hashlib import sha256

_TIME, _HOST, _RANDOM = 12, 6, 10
"""Hex digits: 48 bits of milliseconds, 24 of the host's hash, 40 by chance for the writers of one millisecond."""


def new_writer_id(now: datetime, host: str | None = None) -> str:
    """A writer's name on this host, or on another."""
    return f"{int(now.timestamp() * 1000):0{_TIME}x}{host_sign(host)}{secrets.token_hex(_RANDOM // 2)}"


def host_sign(host: str | None = None) -> str:
    """What names of a host's writers have in common; by chance, one in 16 million other hosts has the same."""
    return sha256((host or socket.gethostname()).encode()).hexdigest()[:_HOST]


def is_from(writer: str, sign: str) -> bool:
    """Whether a writer's name carries a host's sign."""
    return writer[_TIME : _TIME + _HOST] == sign
