"""A place where rows may live, for tests that run over a local folder and over S3 alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """A root under which a test reads and writes."""

    root: str
    filesystem: Any
    options: dict[str, Any] = field(default_factory=dict)

    def uri(self, name: str) -> str:
        return f"{self.root}/{name}"

    def put(self, name: str, data: bytes) -> str:
        path = self.filesystem._strip_protocol(self.uri(name))
        if "://" not in self.root:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.filesystem.pipe_file(path, data)
        return self.uri(name)

    def get(self, name: str) -> bytes:
        return bytes(self.filesystem.cat_file(self.filesystem._strip_protocol(self.uri(name))))

    def remove(self, name: str) -> None:
        self.filesystem.rm_file(self.filesystem._strip_protocol(self.uri(name)))

    def names(self, folder: str) -> list[str]:
        """Names in a folder; none where it is not there, which on an object store is the same as empty."""
        self.filesystem.invalidate_cache()
        try:
            paths = self.filesystem.ls(self.filesystem._strip_protocol(self.uri(folder)), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rsplit("/", 1)[-1] for path in paths)
