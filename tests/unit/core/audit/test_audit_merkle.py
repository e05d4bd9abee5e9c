"""The tree hash of RFC 6962, against its recursive definition and known roots."""

from __future__ import annotations

from hashlib import sha256

import pytest

from airflow_ai_provider.core.audit.sealing.manifest import inclusion_path, leaf_hash, merkle_root, root_from_path


def by_definition(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


@pytest.mark.parametrize("size", range(40))
def test_equals_the_recursive_definition(size: int) -> None:
    leaves = [leaf_hash(bytes([index])) for index in range(size)]
    assert merkle_root(leaves) == by_definition(leaves)


def test_known_roots() -> None:
    """Empty tree and empty leaf, as published with the Certificate Transparency test data."""
    assert merkle_root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle_root([leaf_hash(b"")]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


def test_a_leaf_cannot_stand_for_a_node() -> None:
    one, two = leaf_hash(b"1"), leaf_hash(b"2")
    assert merkle_root([one, two]) != merkle_root([leaf_hash(one + two)])


@pytest.mark.parametrize("size", range(1, 20))
def test_a_path_leads_from_its_leaf_to_the_root_and_from_no_other(size: int) -> None:
    leaves = [leaf_hash(bytes([index])) for index in range(size)]
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = inclusion_path(leaves, index)
        assert root_from_path(leaf, index, size, path) == root
        assert root_from_path(leaf_hash(b"other"), index, size, path) != root
        assert root_from_path(leaf, index, size, [*path, leaf]) != root
        for other in {0, size // 2, size - 1} - {index}:
            assert root_from_path(leaf, other, size, path) != root
    assert root_from_path(leaves[0], size, size, []) is None
