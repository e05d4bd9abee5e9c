"""A process whose clock is off."""

from __future__ import annotations

from pathlib import Path

from support.server import MissingService


def find_faketime() -> Path | None:
    """The library that gives a process another clock, or None."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def faketime_library() -> Path:
    """Raises ``MissingService`` where it is not installed."""
    found = find_faketime()
    if found is None:
        raise MissingService(
            "libfaketime is not installed (no /usr/lib/*/faketime/libfaketimeMT.so.1). "
            "Run: python scripts/ensure_services.py    or: sudo apt-get install libfaketime"
        )
    return found
