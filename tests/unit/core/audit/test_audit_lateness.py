"""Sealing that stopped is told; a trail to which nothing is added is not late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.audit import House

from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.trail.spool import seal_overdue
from airflow_ai_provider.errors import AuditError

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def ago(minutes: int) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("newest", "waiting", "overdue"),
    [
        (None, [], None),
        (None, [ago(59)], None),
        (None, [ago(61), ago(5)], timedelta(minutes=61)),
        (ago(500), [], None),  # nothing was added since
        (ago(500), [ago(10)], None),  # what was added has not waited for long
        (ago(500), [ago(90)], timedelta(minutes=90)),
        (ago(70), [ago(300)], timedelta(minutes=70)),  # still being written when the last manifest was
        (ago(10), [ago(300)], None),
        (ago(60), [ago(300)], None),  # the bound itself
    ],
)
def test_what_is_late(newest: datetime | None, waiting: list[datetime], overdue: timedelta | None) -> None:
    assert seal_overdue(newest, waiting, NOW, HOUR) == overdue


@pytest.mark.parametrize("sealed", [False, True])
def test_a_sealer_that_is_kept_out_fails_once_no_manifest_was_written_for_too_long(house: House, sealed: bool) -> None:
    house.write(1)
    if sealed:
        house.seal()
    now = house.clock()
    with house.store.sealer_lock("main"):
        soon = seal_trail(house.spool, house.archive, house.store, house.key, now + HOUR / 2, within=HOUR)
        assert soon.sequence is None
        with pytest.raises(AuditError, match="sealing has stopped"):
            seal_trail(house.spool, house.archive, house.store, house.key, now + 2 * HOUR, within=HOUR)
