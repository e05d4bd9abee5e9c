"""Segments that wait on another host are no tampering, and do not stay unseen for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from audit_kit import House

from airflow_ai_provider.audit.trail import Trail
from airflow_ai_provider.audit.writers import host_sign, is_from, new_writer_id


def test_names_are_unique_in_the_order_of_time_and_carry_their_host() -> None:
    now = datetime(2025, 3, 1, tzinfo=UTC)
    names = {new_writer_id(now) for _ in range(2000)}
    assert len(names) == 2000
    assert {len(name) for name in names} == {28}
    assert max(names) < new_writer_id(now + timedelta(milliseconds=1))
    assert all(is_from(name, host_sign()) for name in names)
    assert not is_from(new_writer_id(now, "another-host"), host_sign())


@pytest.mark.parametrize(
    ("host", "age", "findings", "notes"),
    [
        ("another-host", timedelta(hours=1), [], ["segment_elsewhere"]),
        ("another-host", timedelta(days=2), ["segment_unaccounted"], []),
        (None, timedelta(hours=1), ["segment_unaccounted"], []),
    ],
)
def test_a_segment_that_is_not_here(
    house: House, host: str | None, age: timedelta, findings: list[str], notes: list[str]
) -> None:
    opened = datetime.now(UTC) - age
    trail = Trail(house.spool, house.store, clock=lambda: opened)
    trail.writer = new_writer_id(opened, host)
    trail.emit("keys.generated", key_id="k1")
    trail.close()
    house.seal()
    house.write(1)
    house.seal()
    (lost,) = (path for path in house.objects("segments") if trail.writer in path.name)
    away = house.copy(house.root.parent / "away")
    for path in (*away.objects("segments"), *away.objects("manifests")):
        path.unlink()
    away.store.pinned.clear()
    away.store.registered = {name: each for name, each in away.store.registered.items() if lost.name.startswith(name)}
    away.seal()
    report = away.verify()
    assert [finding.kind for finding in report.findings] == findings
    assert [note.kind for note in report.notes] == notes
