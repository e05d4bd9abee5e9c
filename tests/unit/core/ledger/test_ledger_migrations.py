"""The schema goes up and down with rows in every table: what both revisions have a column for is kept to the digit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledger import NOW, item, request, written

from airflow_ai_provider.core.ledger.database import HEAD, Ledger, migrate
from airflow_ai_provider.core.ledger.maintenance.partitions import make_months, month_of
from airflow_ai_provider.core.ledger.schema import metadata
from airflow_ai_provider.errors import LedgerError

FIRST_TABLES = {
    *("llm_requests", "llm_open_attempts", "llm_budgets", "llm_holds", "llm_cost_daily"),
    *("audit_pins", "audit_writers"),
}
SECOND_TABLES = FIRST_TABLES | {
    *("llm_budget_limits", "llm_budget_notices", "llm_budget_sets", "llm_stopped_deployments", "llm_adjustments"),
}
THIRD_TABLES = SECOND_TABLES | {"review_items"}
ROUTING = ["routed_by", "fallback_from", "fallback_reason"]
MOMENTS = [
    datetime(2024, 2, 29, 12, 30, 0, 123_456, tzinfo=UTC),
    datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC),
]
"""Both sides of the turn of a year, and the end of a month that is longer than the next."""
Rows = list[dict[str, Any]]


@pytest.fixture
def first(ledger: Ledger) -> Ledger:
    """At revision 0001, with rows in every table."""
    return at_first_revision(ledger)


def at_first_revision(ledger: Ledger) -> Ledger:
    move(ledger, "base")
    move(ledger, "0001")
    fill(ledger, FIRST_TABLES)
    return ledger


def move(ledger: Ledger, target: str) -> None:
    with ledger.write() as conn:
        migrate(conn, target)


def table(conn: sa.Connection, name: str) -> sa.Table:
    """A table as it is now."""
    return sa.Table(name, sa.MetaData(), autoload_with=conn)


def fill(ledger: Ledger, names: set[str]) -> None:
    """Rows with a value of its own in every column that is not computed."""
    with ledger.write() as conn:
        for name in sorted(names):
            found = table(conn, name)
            columns = [column for column in found.columns if column.computed is None]
            rows = [
                {column.name: value(column, place, number) for place, column in enumerate(columns)}
                for number in range(len(MOMENTS))
            ]
            conn.execute(sa.insert(found), rows)


def value(column: sa.Column[Any], place: int, number: int) -> Any:
    match column.type:
        case sa.DateTime():
            return MOMENTS[number] + timedelta(microseconds=0 if column.name == "created_at" else place)
        case sa.Date():
            return date(2025, 1, 1) + timedelta(days=number)
        case sa.BigInteger():
            return 9_007_199_254_740_993 + 1000 * place + number  # no float holds it
        case sa.Integer():
            return 1000 * place + number
        case sa.String(length=length):
            return f"{number}·{column.name}"[: length or 99]
    raise TypeError(column.type)


def contents(ledger: Ledger, names: set[str]) -> dict[str, Rows]:
    """Every row of these tables, computed columns included, in the order of their keys."""
    with ledger.read() as conn:
        return {name: rows_of(conn, table(conn, name)) for name in sorted(names)}


def rows_of(conn: sa.Connection, found: sa.Table) -> Rows:
    return [dict(row) for row in conn.execute(sa.select(found).order_by(*found.primary_key)).mappings()]


def assert_kept(before: dict[str, Rows], after: dict[str, Rows], *, but: frozenset[str] = frozenset()) -> None:
    """Each row of ``before`` stands in ``after`` with the same value in every column that both have."""
    for name, rows in before.items():
        assert len(after[name]) == len(rows) == len(MOMENTS), name
        for old, new in zip(rows, after[name], strict=True):
            both = (old.keys() & new.keys()) - but
            assert {column: new[column] for column in both} == {column: old[column] for column in both}, name


def views(ledger: Ledger) -> dict[str, int]:
    """Rows of every view that there is."""
    with ledger.read() as conn:
        names = sa.inspect(conn).get_view_names()
        return {name: len(conn.execute(sa.text(f"SELECT * FROM {name}")).all()) for name in sorted(names)}


def tables(ledger: Ledger) -> set[str]:
    return set(sa.inspect(ledger.engine).get_table_names()) - {"ai_ledger_version"}


def test_everything_is_kept_up_down_and_up_again(first: Ledger) -> None:
    assert views(first) == {"team_daily_cost": len(MOMENTS)}
    at_first = contents(first, FIRST_TABLES)

    move(first, "0002")
    assert tables(first) - months(first) == SECOND_TABLES
    second = contents(first, FIRST_TABLES)
    assert_kept(at_first, second)
    assert views(first) == {"llm_request_costs": len(MOMENTS), "team_daily_cost": len(MOMENTS)}
    assert {row["limit_source"] for row in second["llm_budgets"]} == {"policy"}
    assert {row["prompt_bytes"] for name in ("llm_requests", "llm_open_attempts") for row in second[name]} == {0}
    assert {(row["baseline_nano"], row["adjusted_nano"]) for row in second["llm_cost_daily"]} == {(0, 0)}

    new_tables = SECOND_TABLES - FIRST_TABLES
    fill(first, new_tables)
    with first.write() as conn:
        conn.execute(sa.text("UPDATE llm_requests SET baseline_nano = 5, budget_set = 'x', vendor_request_id = 'v'"))
        conn.execute(sa.text("UPDATE llm_cost_daily SET baseline_nano = 5, adjusted_nano = 6"))
    whole = contents(first, SECOND_TABLES)
    assert_kept(at_first, whole)

    move(first, "0001")
    assert tables(first) == FIRST_TABLES
    back = contents(first, FIRST_TABLES)
    assert {name: list(rows[0]) for name, rows in back.items()} == {
        name: list(rows[0]) for name, rows in at_first.items()
    }, "the columns are those of 0001, in their order"
    assert_kept(at_first, back)
    assert views(first) == {"team_daily_cost": len(MOMENTS)}

    move(first, "head")
    assert_kept(at_first, contents(first, FIRST_TABLES))
    assert [name for name in new_tables if contents(first, {name})[name]] == []

    move(first, "base")
    assert tables(first) == set()
    assert views(first) == {}


def test_the_third_revision_keeps_everything_up_down_and_up_again(ledger: Ledger) -> None:
    """In every month that there is; the new columns are empty in what stood there before."""
    move(ledger, "base")
    move(ledger, "0002")
    if not ledger.sqlite:
        with ledger.write() as conn:
            make_months(conn, {month_of(moment) for moment in MOMENTS})
    fill(ledger, SECOND_TABLES)
    at_second = contents(ledger, SECOND_TABLES)

    move(ledger, "0003")
    assert tables(ledger) >= THIRD_TABLES
    third = contents(ledger, SECOND_TABLES)
    assert_kept(at_second, third)
    for name in ("llm_requests", "llm_open_attempts"):
        assert list(third[name][0]) == [*at_second[name][0], *ROUTING]
        assert {row[column] for row in third[name] for column in ROUTING} == {None}
    fill(ledger, {"review_items"})
    with ledger.write() as conn:
        conn.execute(sa.text("UPDATE llm_requests SET routed_by = 'column', fallback_reason = 'timeout'"))
    assert views(ledger) == {"llm_request_costs": len(MOMENTS), "team_daily_cost": len(MOMENTS)}

    move(ledger, "0002")
    assert tables(ledger) - months(ledger) == SECOND_TABLES
    back = contents(ledger, SECOND_TABLES)
    assert [list(rows[0]) for rows in back.values()] == [list(rows[0]) for rows in at_second.values()]
    assert_kept(at_second, back)

    move(ledger, "head")
    assert_kept(at_second, contents(ledger, SECOND_TABLES))
    written(ledger, item(MOMENTS[1], request=replace(request(), routed_by="column", fallback_reason="timeout")))
    move(ledger, "base")
    assert tables(ledger) == set()
    assert views(ledger) == {}


def test_the_fourth_revision_keeps_limits_and_says_of_later_ones_which_file_stated_them(ledger: Ledger) -> None:
    move(ledger, "base")
    move(ledger, "0003")
    fill(ledger, {"llm_budget_limits"})
    before = contents(ledger, {"llm_budget_limits"})
    move(ledger, "0004")
    after = contents(ledger, {"llm_budget_limits"})
    assert_kept(before, after)
    assert {(row["policy_path"], row["policy_hash"]) for row in after["llm_budget_limits"]} == {(None, None)}
    fill(ledger, {"llm_policy_pins"})
    move(ledger, "0003")
    assert contents(ledger, {"llm_budget_limits"}) == before
    assert "llm_policy_pins" not in tables(ledger)
    move(ledger, "head")
    assert tables(ledger) >= set(metadata.tables)


def months(ledger: Ledger) -> set[str]:
    """Partitions, which PostgreSQL tells among the tables."""
    return {name for name in tables(ledger) if name.startswith("llm_requests_")}


def test_one_request_has_one_open_item_on_both_databases(ledger: Ledger) -> None:
    fill(ledger, {"review_items"})
    rename = sa.text("UPDATE review_items SET request_id = 'same', status = :status WHERE try_number < :most")
    with ledger.read() as conn:
        tries = sorted(row["try_number"] for row in rows_of(conn, table(conn, "review_items")))
    with ledger.write() as conn:
        conn.execute(rename, {"status": "decided", "most": tries[-1]})
        conn.execute(rename, {"status": "open", "most": tries[1]})
    with pytest.raises(LedgerError, match="it refuses a row"), ledger.write() as conn:
        conn.execute(rename, {"status": "open", "most": tries[2]})


def test_on_postgresql_rows_are_in_the_partition_of_their_month(postgres_url: str) -> None:
    with Ledger.open(postgres_url) as ledger:
        placed_by_month(at_first_revision(ledger))


def placed_by_month(first: Ledger) -> None:
    move(first, "head")
    with first.read() as conn:
        placed = conn.execute(
            sa.text("SELECT created_at, CAST(tableoid AS regclass) FROM llm_requests ORDER BY created_at")
        ).all()
    assert [(row[0], str(row[1])) for row in placed] == [(moment, f"llm_requests_{moment:%Y_%m}") for moment in MOMENTS]
    move(first, "0001")
    with first.read() as conn:
        assert conn.execute(sa.text("SELECT relkind FROM pg_class WHERE relname = 'llm_requests'")).scalar() == "r"
        left = conn.execute(sa.text("SELECT relname FROM pg_class WHERE relname LIKE 'llm\\_requests\\_20%'"))
        assert left.all() == []


def test_a_row_may_be_settled_at_every_stage_that_this_code_knows(first: Ledger) -> None:
    """Months that a connection had seen before the table was rebuilt are looked for again."""
    for _ in range(2):
        move(first, "head")
        written(first, item(NOW), item(MOMENTS[0]))
        with first.read() as conn:
            assert conn.execute(sa.text("SELECT COUNT(*) FROM llm_request_costs WHERE row_key <> ''")).scalar() >= 2
        move(first, "0001")


def test_names_of_budgets_get_their_time_zone(first: Ledger) -> None:
    with first.write() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO llm_budgets (budget_id, name, period, period_start, limit_nano, updated_at) VALUES "
                "('organisation/month[Europe/Berlin]@2026-01-01', 'organisation/month', 'month', '2026-01-01', 7, :now)"
            ),
            {"now": NOW.isoformat(sep=" ") if first.sqlite else NOW},
        )
    move(first, "head")
    with first.read() as conn:
        names = conn.execute(sa.text("SELECT name FROM llm_budgets WHERE period = 'month'")).scalars().all()
    assert names == ["organisation/month[Europe/Berlin]"]


def test_a_migration_that_fails_changes_nothing(first: Ledger) -> None:
    """On both databases a migration is one transaction."""
    before = contents(first, FIRST_TABLES)
    with first.write() as conn:
        conn.execute(sa.text("CREATE TABLE llm_budget_sets (x INTEGER)"))
    with pytest.raises(LedgerError, match=r"llm_budget_sets.* already exists"):
        move(first, "head")
    assert contents(first, FIRST_TABLES) == before
    assert views(first) == {"team_daily_cost": len(MOMENTS)}
    with first.write() as conn:
        conn.execute(sa.text("DROP TABLE llm_budget_sets"))
    move(first, "head")
    assert_kept(before, contents(first, FIRST_TABLES))


def test_the_code_is_written_for_the_newest_migration(ledger: Ledger) -> None:
    with ledger.read() as conn:
        assert conn.execute(sa.text("SELECT version_num FROM ai_ledger_version")).scalar() == HEAD
