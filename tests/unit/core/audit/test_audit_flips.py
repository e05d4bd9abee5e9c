"""A changed byte, anywhere, is found; where the format allows it, at the very record."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.audit import House, emit_calls, overwrite

from airflow_ai_provider.core.audit.verify.segment_reader import check_segment

RECORDS = 6


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    house = House(tmp_path_factory.mktemp("flips"))
    house.write(RECORDS)
    (name,) = house.spool.names("sealed")
    return house.spool.path(name, "sealed").read_bytes()


def place_of(data: bytes, offset: int) -> set[str]:
    """Where a change at an offset must be reported: the line it is in."""
    line = data[:offset].count(b"\n")
    if line == 0:
        return {"head"}
    if line <= RECORDS:
        return {f"record {line}"}
    return {"seal", f"record {RECORDS + 1}", f"after record {RECORDS}"}


def test_every_byte_of_a_sealed_segment(segment: bytes) -> None:
    for offset in range(len(segment)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            changed = bytearray(segment)
            changed[offset] ^= flip
            fault = check_segment([bytes(changed)], sealed=True).fault
            assert fault is not None, (offset, flip)
            assert fault.place in place_of(segment, offset), (offset, flip)


def test_every_byte_of_an_open_segment(segment: bytes) -> None:
    """Also its last byte, the line end of a record that was promised."""
    lines = segment.splitlines(keepends=True)
    data = b"".join(lines[:-1])
    assert check_segment([data], sealed=False).fault is None
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 0x01
        fault = check_segment([bytes(changed)], sealed=False).fault
        assert fault is not None, offset
        assert fault.place in place_of(segment, offset), offset


def test_every_byte_of_the_archive(tmp_path: Path) -> None:
    """Compressed segments and manifests, through the whole of ``verify``: named with the object, and the record."""
    house = House(tmp_path / "house")
    house.write(RECORDS)
    house.seal()
    for path in house.objects(""):
        data = path.read_bytes()
        for offset in range(len(data)):
            changed = bytearray(data)
            changed[offset] ^= 1 << (offset % 8)
            overwrite(path, bytes(changed))
            findings = house.verify().findings
            assert findings, (path.name, offset)
            if path.name.endswith(".gz"):
                (finding,) = findings
                assert path.name in finding.place
                assert finding.place.rpartition(": ")[2].startswith(
                    ("head", "record ", "after record ", "seal", "after the seal")
                )
            else:
                assert {finding.place for finding in findings} >= {"manifest 1"}
        overwrite(path, data)
    assert house.verify().findings == []


def test_changes_in_an_open_spool_segment_through_verify(tmp_path: Path) -> None:
    house = House(tmp_path / "house")
    with house.trail() as trail:
        emit_calls(trail, 2)
        trail.flush()
        (name,) = house.spool.names("open")
        path = house.spool.path(name, "open")
        data = path.read_bytes()
        for offset in range(0, len(data), 7):
            changed = bytearray(data)
            changed[offset] ^= 0x04
            path.write_bytes(bytes(changed))
            (finding,) = house.verify().findings
            assert finding.place.startswith(f"spool {name}.open: "), offset
        path.write_bytes(data)
    assert house.verify().findings == []


@given(st.data())
def test_any_edit_of_lines_is_found_at_the_first_line_that_differs(segment: bytes, data: st.DataObject) -> None:
    lines = segment.splitlines(keepends=True)
    edited = list(lines)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, max(0, len(edited) - 1)))
        other = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["delete", "swap", "insert", "cut", "garble"])):
            case "delete":
                del edited[index : index + 1]
            case "swap" if edited:
                edited[index], edited[other % len(edited)] = edited[other % len(edited)], edited[index]
            case "insert":
                edited.insert(index, lines[other])
            case "cut":
                del edited[index:]
            case "garble":
                edited[index : index + 1] = [data.draw(st.binary(max_size=20)).replace(b"\n", b"") + b"\n"]
    check = check_segment([b"".join(edited)], sealed=True)
    if edited == lines:
        assert check.fault is None
        return
    same = next((i for i, (one, two) in enumerate(zip(edited, lines, strict=False)) if one != two), None)
    first = min(len(edited), len(lines)) if same is None else same
    assert check.fault is not None
    assert check.count == max(0, min(first, RECORDS + 1) - 1)


@given(st.binary(max_size=300), st.booleans())
def test_rubbish_is_a_fault_not_a_crash(data: bytes, sealed: bool) -> None:
    assert check_segment([data], sealed=sealed).fault is not None
