"""What a Redis that answers and refuses says, and what to do about it.

Unlike one that is away, it will not be better a moment later: it is told once, and asked again at long intervals.
"""

from __future__ import annotations

RETRY_SECONDS = 30.0
"""Seconds from a refusal to the next question."""
_REMEDIES = (
    (
        ("OutOfMemoryError",),
        ("oom", "maxmemory"),
        "its memory is full: raise maxmemory, or let it evict",
    ),
    (
        ("NoPermissionError", "AuthorizationError"),
        ("noperm", "no permissions", "can't access at least one of the keys"),
        "its user lacks a permission: allow ~ai:* with +@read +@write +@scripting +@connection +time",
    ),
    (("ReadOnlyError",), ("readonly", "read only"), "it is a read-only replica: give the address of the primary"),
    (
        ("MovedError", "AskError", "ClusterDownError", "ClusterCrossSlotError", "ClusterError", "TryAgainError"),
        ("moved ", "clusterdown", "crossslot", "hash slot"),
        "it is a Redis Cluster, which is not supported: give a single or replicated Redis",
    ),
    (("BusyLoadingError",), ("loading",), "it is loading its data"),
    (("MasterDownError",), ("masterdown",), "it is a replica whose primary is down: give the address of the primary"),
    (
        ("AuthenticationError", "AuthenticationWrongNumberOfArgsError"),
        ("noauth", "wrongpass", "invalid password", "authentication"),
        "it refuses the login: check user and password",
    ),
    (
        (),
        ("misconf",),
        "it cannot save to its disk and takes no writes: free its disk, or see stop-writes-on-bgsave-error",
    ),
    (
        (),
        ("unknown command", "noreplicas"),
        "it lacks a command (EVALSHA) or replicas that are needed",
    ),
)


def refusal_of(error: Exception) -> str | None:
    """Why Redis refuses, and the remedy; ``None`` where it is merely away. Holds no key, user or password."""
    from redis.exceptions import NoScriptError, ResponseError

    if isinstance(error, NoScriptError):
        return None
    name, text = type(error).__name__, str(error).lower()
    for names, phrases, remedy in _REMEDIES:
        if name in names or (isinstance(error, ResponseError) and any(phrase in text for phrase in phrases)):
            return f"Redis refuses ({name}): {remedy}; check the connection of cache_conn_id"
    if isinstance(error, ResponseError):
        return f"Redis refuses ({name}); check the connection of cache_conn_id and the server's log"
    return None
