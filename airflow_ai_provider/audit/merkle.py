"""The Merkle tree hash of RFC 6962, section 2.1: leaf ``H(0x00 ‖ data)``, node ``H(0x01 ‖ left ‖ right)``.

An inclusion path (section 2.1.1) shows that a leaf is under a root with a number of hashes that grows with the
logarithm of the leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


class MerkleTree:
    """A root over leaves that come one after the other; memory grows with the logarithm of their number."""

    __slots__ = ("_peaks", "count")

    def __init__(self) -> None:
        self.count = 0
        self._peaks: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Append a leaf hash."""
        self.count += 1
        number, node = self.count, leaf
        while not number & 1:
            node = sha256(b"\x01" + self._peaks.pop() + node).digest()
            number >>= 1
        self._peaks.append(node)

    def root(self) -> bytes:
        """Root of what was added; of nothing, the hash of nothing."""
        if not self._peaks:
            return sha256(b"").digest()
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = sha256(b"\x01" + peak + node).digest()
        return node


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaf hashes."""
    tree = MerkleTree()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from leaf ``index`` to the root, lowest first."""
    if len(leaves) == 1:
        return []
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < split:
        return [*inclusion_path(leaves[:split], index), merkle_root(leaves[split:])]
    return [*inclusion_path(leaves[split:], index - split), merkle_root(leaves[:split])]


def root_from_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a path leads to, or ``None`` where it does not fit the number of leaves (RFC 9162, 2.1.3.2)."""
    place, last, node = index, count - 1, leaf
    if not 0 <= place <= last:
        return None
    for beside in path:
        if last == 0:
            return None
        if place & 1 or place == last:
            node = sha256(b"\x01" + beside + node).digest()
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            node = sha256(b"\x01" + node + beside).digest()
        place, last = place >> 1, last >> 1
    return node if last == 0 else None
