"""Tables that leave masked or encrypted and come back: types, permissions, bad rows, rotations, the audit trail."""

from __future__ import annotations

import json
import os
import signal
import threading
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException
from support.privacy_tables import POLICY, ROWS, decrypt, encrypt, events, mask, read, restore, rows_of, write
from support.privacy_tables import home as _home
from support.task_context import FakeTaskInstance, context

from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.jobs import transform
from airflow_ai_provider.core.policy import load_policy
from airflow_ai_provider.core.privacy.crypto.fields import Fields
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.privacy.masking.masker import Masker, RowMask
from airflow_ai_provider.core.rows.manifest import read_manifest
from airflow_ai_provider.errors import AuditError
from airflow_ai_provider.operators.privacy import (
    DecryptColumnsOperator,
    EncryptColumnsOperator,
    MaskRowsOperator,
)
from airflow_ai_provider.operators.rows import GatherOperator

home = _home


# Masking and restoring


def test_a_kill_stops_between_rows_and_a_retry_goes_on_after_the_finished_parts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / "in.parquet", [{"id": f"r{n}", "text": "ann@example.com"} for n in range(40)])
    operator = MaskRowsOperator(
        task_id="t",
        source=str(home / "in.parquet"),
        sink=str(home / "masked"),
        key="id",
        team="support",
        profile="standard",
        batch_rows=20,
    )
    masked, stopping = [], threading.Event()
    for_row, stop = Masker.for_row, transform._Transform.stop

    def kill_at_the_25th(masker: Masker, row: Any, key: str | None) -> RowMask:
        masked.append(row)
        if len(masked) == 25:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping.wait(60)
        return for_row(masker, row, key)

    async def stop_and_tell(job: transform._Transform, grace_seconds: float) -> None:
        await stop(job, grace_seconds)
        stopping.set()

    before = signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Masker, "for_row", kill_at_the_25th)
            patched.setattr(transform._Transform, "stop", stop_and_tell)
            with pytest.raises(SystemExit):
                operator.execute(context())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(masked) == 25
    assert read_manifest(str(home / "masked")) is None
    summary = mask(home, batch_rows=20)
    assert (summary["rows"], summary["ok"], summary["skipped"]) == (40, 40, 20)


def test_a_policy_edited_during_a_task_does_not_mix_with_the_one_it_began_with(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trail names the policy whose profile masked the rows."""
    began_with = load_policy(home / "policy.yaml").digest
    make = Masker.__init__

    def edit_then_make(masker: Masker, *args: Any, **kwargs: Any) -> None:
        (home / "policy.yaml").write_text(POLICY.replace("detect: [email, phone], ", "detect: [email], "))
        make(masker, *args, **kwargs)

    monkeypatch.setattr(Masker, "__init__", edit_then_make)
    mask(home)
    assert load_policy(home / "policy.yaml").digest != began_with
    assert "13812345678" not in json.dumps(rows_of(home / "masked"), default=str)
    assert [event["airflow_ai.policy_hash"] for event in events(home)] == [began_with]


def test_masked_rows_hold_nothing_personal_and_come_back(home: Path) -> None:
    summary = mask(home)
    assert (summary["rows"], summary["ok"], summary["error"]) == (3, 3, 0)
    raw = json.dumps(rows_of(home / "masked"), ensure_ascii=False)
    for value in ("Ann ", "李", "example.com", "13812345678", "u0040"):
        assert value not in raw, value
    assert [row["id"] for row in rows_of(home / "masked")] == ["r0", "r1", "r2"]
    assert json.loads(rows_of(home / "masked")[1]["text"])["who"].startswith("[PERSON_")
    summary = restore(home)
    assert (summary["ok"], summary["rejected"], summary["error"]) == (3, 0, 0)
    for row, original in zip(rows_of(home / "restored"), ROWS, strict=True):
        assert (row["text"], row["customer_name"]) == (original["text"], original["customer_name"])
        assert row["n"] == (None if original["n"] is None else str(original["n"]))
        assert "tokens_sealed" not in row


def test_what_masking_missed_does_not_leave(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard looks at the finished text: a fault in masking costs its rows, and nothing of them is written."""
    monkeypatch.setattr(RowMask, "mask_value", lambda mask, value: value)
    mask(home, max_error_rate=1)
    first, second, third = rows_of(home / "masked")
    assert (first["privacy_status"], first["text"], first["customer_name"]) == ("error", None, None)
    assert first["privacy_error"].startswith("privacy: a masked text still holds a value of kind email, person, phone")
    assert (second["privacy_status"], third["privacy_status"]) == ("error", "ok")


def test_a_table_of_every_kind_of_column_comes_back(home: Path) -> None:
    """Lists, structures and bytes become text, in which tokens are; moments and fractions are left as they are."""
    value = {"mails": ["ann@example.com"], "who": {"phone": 13812345678}}
    short = {"customer_name": "李"}
    write(
        home / "in.parquet",
        [{"id": "1", **short, "nested": value, "raw": b"ann@example.com", "at": date(2024, 1, 31), "x": 1.5}],
    )
    mask(home)
    (row,) = rows_of(home / "masked")
    assert "example.com" not in str(row)
    assert "13812345678" not in str(row)
    assert "李" not in str(row), "a name too short to be looked for in texts"
    assert (row["at"], row["x"]) == (date(2024, 1, 31), 1.5)
    restore(home)
    (row,) = rows_of(home / "restored")
    assert json.loads(row["nested"]) == {"mails": ["ann@example.com"], "who": {"phone": "13812345678"}}
    assert row["raw"] == "ann@example.com"


def test_what_a_tool_made_of_the_texts_is_restored_or_reported(home: Path) -> None:
    """Rows come back in another order, some with tokens changed, exchanged or left out."""
    mask(home)
    first, second, third = rows_of(home / "masked")
    first["text"] = first["text"].lower().replace("[", "").replace("]", "")
    second["text"] = first["text"]
    third["text"] = "no token any more"
    write(home / "back.parquet", [third, second, first])
    summary = restore(home, "back.parquet", columns=["text"])
    assert (summary["ok"], summary["rejected"], summary["errors"]) == (2, 1, {"restore": 1})
    third, second, first = rows_of(home / "restored")
    assert first["text"] == "i am Ann Lee, ann@example.com, call 13812345678"
    assert "Ann" not in second["text"], "another row's value"
    assert (second["privacy_status"], second["tokens_unknown"]) == ("rejected", 3)
    assert (third["privacy_status"], third["tokens_missing"]) == ("ok", 1)
    encrypt(home, "restored", columns={"text": "encrypt"})
    assert [row["privacy_status"] for row in rows_of(home / "closed")] == ["ok", "rejected", "ok"]
    whole = restore(home, "back.parquet", "whole", columns=["text", "n", "customer_name"], whole=True)
    assert whole["rejected"] == 2


def test_a_map_of_tokens_opens_in_its_own_row_only(home: Path) -> None:
    mask(home)
    first, second, third = rows_of(home / "masked")
    first["tokens_sealed"], second["tokens_sealed"] = second["tokens_sealed"], first["tokens_sealed"]
    third["tokens_sealed"] = None
    write(home / "swapped.parquet", [first, second, third])
    with pytest.raises(AirflowFailException, match="3 of 3 rows ended with an error"):
        restore(home, "swapped.parquet")
    first, second, third = rows_of(home / "restored")
    assert first["privacy_error"].startswith("privacy: a ciphertext does not open")
    assert third["privacy_error"] == "privacy: tokens_sealed is empty: the row has lost the map of its tokens"
    for row in (first, second, third):
        assert (row["privacy_status"], row["text"]) == ("error", None)


def test_tokens_outlive_rotations_and_a_lost_key_is_named(home: Path) -> None:
    mask(home)
    old = Keyring.open(home / "ai/keyring.json").active
    Keyring.rotate(home / "ai/keyring.json")
    Keyring.rotate(home / "ai/keyring.json")
    assert restore(home)["ok"] == 3
    content = json.loads((home / "ai/keyring.json").read_text())
    del content["keys"][old]
    (home / "ai/keyring.json").write_text(json.dumps(content))
    with pytest.raises(AirflowFailException, match=r"3 of 3 rows.*keyring 3"):
        restore(home, sink="again")
    first = rows_of(home / "again")[0]
    assert f"key '{old}' is not in the keyring" in first["privacy_error"]
    assert first["text"] is None


@pytest.mark.parametrize(("scope", "rows", "runs"), [("row", 2, 2), ("run", 1, 2), ("team", 1, 1)])
def test_a_value_keeps_its_token_as_far_as_the_scope_says(home: Path, scope: str, rows: int, runs: int) -> None:
    write(home / "in.parquet", [{"id": n, "text": "ann@example.com"} for n in "ab"])
    other = FakeTaskInstance()
    other.run_id = "run 2"
    mask(home, sink="one", scope=scope)
    mask(home, sink="two", scope=scope, ti=other)
    one, two = ([row["text"] for row in rows_of(home / sink)] for sink in ("one", "two"))
    assert len(set(one)) == rows
    assert len({one[0], two[0]}) == runs


def test_a_masked_table_without_a_way_back(home: Path) -> None:
    mask(home, reversible=False)
    assert "tokens_sealed" not in rows_of(home / "masked")[0]
    with pytest.raises(AirflowFailException, match="no column tokens_sealed"):
        restore(home)


# Encrypting and decrypting

TYPED = pa.schema(
    [
        ("id", pa.string()),
        ("iban", pa.string()),
        ("small", pa.int32()),
        ("price", pa.decimal128(10, 2)),
        ("at", pa.timestamp("ms", "Europe/Berlin")),
        ("exact", pa.timestamp("ns")),
        ("day", pa.date32()),
        ("blob", pa.binary()),
        ("tags", pa.list_(pa.struct([("k", pa.string()), ("v", pa.float32())]))),
        ("flag", pa.bool_()),
        ("ratio", pa.float32()),
    ]
)
COLUMNS = [name for name in TYPED.names if name != "id"]


def typed_table() -> pa.Table:
    first = {
        "id": "1", "iban": "DE89", "small": -3, "price": Decimal("12.50"), "at": datetime(2024, 3, 31, 1, 30),
        "exact": 1_700_000_000_123_456_789, "day": date(2024, 1, 31), "blob": b"\xff\x00", "flag": True, "ratio": 0.1,
        "tags": [{"k": "a", "v": 0.5}, {"k": None, "v": None}],
    }  # fmt: skip
    return pa.Table.from_pylist([first, {"id": "2"}, {**first, "id": "3", "iban": ""}], TYPED)


def test_types_come_back_as_they_were(home: Path) -> None:
    table = typed_table()
    pq.write_table(table, home / "in.parquet")
    encrypt(home, columns=dict.fromkeys(COLUMNS, "encrypt"), batch_rows=2)
    closed = read(home / "closed")
    assert {str(closed.schema.field(name).type) for name in COLUMNS} == {"string"}
    assert closed.column("iban").to_pylist()[1] is None
    decrypt(home, columns=COLUMNS, batch_rows=3)
    back = read(home / "open").select(TYPED.names)
    assert back.schema.types == table.schema.types
    assert back.equals(pq.read_table(home / "in.parquet"))


def test_joins_work_across_tables_and_come_back(home: Path) -> None:
    columns = {"n": {"deterministic": "customer"}, "text": "deterministic"}
    encrypt(home, columns=columns)
    encrypt(home, sink="orders", columns={"n": {"deterministic": "customer"}}, table="orders")
    closed, orders = rows_of(home / "closed"), rows_of(home / "orders")
    assert [row["n"] for row in closed] == [row["n"] for row in orders]
    decrypt(home, columns={"n": "customer", "text": "text"})
    assert [(row["n"], row["text"]) for row in rows_of(home / "open")] == [(row["n"], row["text"]) for row in ROWS]


def test_columns_are_treated_as_the_dag_says(home: Path) -> None:
    row = {"id": "1", "card": "4111111111111111", "phone": "13812345678", "age": 34, "name": "Ann", "who": "p1",
           "visit": datetime(2024, 1, 31, 9), "ip": "203.0.113.45", "note": "x"}  # fmt: skip
    write(home / "in.parquet", [row, {**row, "id": "2", "visit": datetime(2024, 2, 3, 9)}])
    columns = {
        "card": "mask",
        "phone": "hash",
        "age": {"generalise": 10},
        "name": {"tokenise": "PERSON"},
        "visit": {"date_shift": {"subject": "who", "days": 30}},
        "ip": {"generalise": "network"},
        "note": "redact",
    }
    encrypt(home, columns=columns)
    table = read(home / "closed")
    first, second = table.to_pylist()
    assert (first["card"], first["age"], first["ip"], first["note"]) == (
        "****1111",
        "30..39",
        "203.0.113.0/24",
        "[REDACTED]",
    )
    assert first["phone"].partition(":")[0] == Keyring.open(home / "ai/keyring.json").active
    assert first["name"].startswith("[PERSON_")
    assert table.schema.field("visit").type == pa.timestamp("us")
    assert (second["visit"] - first["visit"]).days == 3
    assert first["visit"] != row["visit"]


def test_a_value_that_does_not_fit_costs_its_row_and_no_other(home: Path) -> None:
    write(home / "in.parquet", [{"id": "1", "age": "34", "iban": "DE89"}, {"id": "2", "age": "old", "iban": "DE90"}])
    summary = encrypt(home, columns={"age": {"generalise": 10}, "iban": "encrypt"})
    assert (summary["ok"], summary["error"], summary["errors"]) == (1, 1, {"privacy": 1})
    good, bad = rows_of(home / "closed")
    assert (good["privacy_status"], good["privacy_error"], good["age"]) == ("ok", None, "30..39")
    assert (bad["privacy_status"], bad["age"], bad["iban"]) == ("error", None, None)
    assert "old" not in bad["privacy_error"]
    decrypt(home, columns=["iban"])
    good, bad = rows_of(home / "open")
    assert good["iban"] == "DE89"
    assert (bad["privacy_status"], bad["iban"]) == ("error", None), "an error stays one in later steps"


def test_whatever_a_value_does_it_costs_its_row_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Fields, value: Any, **place: Any) -> str:
        if place["record"] == "r1":
            raise ZeroDivisionError(f"cannot divide {value}")
        return "enc:x"

    monkeypatch.setattr(Fields, "encrypt", broken)
    assert encrypt(home, columns={"text": "encrypt"})["error"] == 1
    row = rows_of(home / "closed")[1]
    assert (row["text"], row["privacy_error"]) == (None, "privacy: the row cannot be treated (ZeroDivisionError)")


def test_a_changed_or_foreign_cell_is_an_error_and_never_garbage(home: Path) -> None:
    encrypt(home, columns={"text": "encrypt"})
    rows = rows_of(home / "closed")
    rows[0]["text"] = rows[1]["text"]
    rows[1]["text"] = "plain text"
    write(home / "bad.parquet", rows)
    with pytest.raises(AirflowFailException, match="2 of 3 rows"):
        decrypt(home, "bad.parquet", columns=["text"])
    assert [row["text"] for row in rows_of(home / "open")] == [None, None, ROWS[2]["text"]]


def test_rows_without_a_key_are_named_by_their_number(home: Path) -> None:
    encrypt(home, columns={"text": "encrypt"}, key="#row", batch_rows=2)
    assert [row["row_number"] for row in rows_of(home / "closed")] == [0, 1, 2]
    decrypt(home, columns=["text"], key="row_number")
    assert [row["text"] for row in rows_of(home / "open")] == [row["text"] for row in ROWS]


# Permissions and the trail


@pytest.mark.parametrize(
    ("dag", "changes", "words"),
    [
        ("other", {}, r"DAG 'other' has no permission to decrypt .*\{dag: other, team: support, columns: \[text\]\}"),
        ("d", {"team": "sales"}, "DAG 'd' has no permission to decrypt for team 'sales'"),
        ("narrow", {}, "DAG 'narrow' has no permission"),
    ],
)  # fmt: skip
def test_what_the_policy_does_not_allow_is_refused_and_recorded(
    home: Path, dag: str, changes: dict[str, str], words: str
) -> None:
    encrypt(home, columns={"text": "encrypt"})
    ti = FakeTaskInstance()
    ti.dag_id = dag
    with pytest.raises(AirflowFailException, match=words):
        decrypt(home, columns=["text"], ti=ti, **changes)
    assert not (home / "open").exists()
    last = events(home)[-1]
    assert (last["event.action"], last["event.outcome"], last["error.type"]) == (
        "rows.decrypted",
        "failure",
        "not_permitted",
    )


def test_a_permission_for_a_column_is_one_for_that_column(home: Path) -> None:
    write(home / "in.parquet", [{"id": "1", "iban": "DE89"}])
    encrypt(home, columns={"iban": "encrypt"})
    ti = FakeTaskInstance()
    ti.dag_id = "narrow"
    assert decrypt(home, columns=["iban"], ti=ti)["ok"] == 1


def test_a_permission_for_a_column_is_none_for_all_of_them(home: Path) -> None:
    mask(home)
    narrow = POLICY.replace("restore: [{dag: d, team: support}]", "restore: [{dag: d, team: support, columns: [text]}]")
    (home / "policy.yaml").write_text(narrow)
    assert restore(home, columns=["text"])["ok"] == 3
    with pytest.raises(AirflowFailException, match="no permission to restore"):
        restore(home, sink="all")
    with pytest.raises(AirflowFailException, match=r"columns: \[text, customer_name\]"):
        restore(home, sink="two", columns=["text", "customer_name"])


def test_without_a_policy_nobody_may(home: Path) -> None:
    mask(home)
    (home / "policy.yaml").write_text(POLICY.partition("privacy:")[0])
    with pytest.raises(AirflowFailException, match="no permission to restore"):
        restore(home)
    (home / "policy.yaml").unlink()
    with pytest.raises(AirflowFailException, match="no policy file there"):
        restore(home)


def test_the_trail_says_who_opened_how_many_rows_and_no_value(home: Path) -> None:
    mask(home)
    restore(home)
    encrypt(home, columns={"text": "encrypt"}, batch_rows=2)
    decrypt(home, columns=["text"])
    seen = [(event["event.action"], event["airflow_ai.rows"], event["airflow_ai.dag_id"]) for event in events(home)]
    assert seen == [
        ("rows.masked", 3, "d"),
        ("rows.restored", 3, "d"),
        ("rows.encrypted", 2, "d"),
        ("rows.encrypted", 1, "d"),
        ("rows.decrypted", 3, "d"),
    ]
    assert "Ann" not in json.dumps(events(home))
    assert all(event["host.name"] and event["airflow_ai.team"] == "support" for event in events(home))


def test_no_batch_is_treated_while_the_spool_is_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of the configuration is the bound of every task that writes the trail."""
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_SPOOL_LIMIT_MB", "1")
    spool = home / "ai/audit/spool/main"
    spool.mkdir(parents=True)
    (spool / "waiting.jsonl").write_bytes(bytes(2 * 1024 * 1024))
    with pytest.raises(AirflowFailException, match="spool"):
        mask(home)
    assert not list((home / "masked").glob("*.parquet"))


def test_nothing_is_opened_if_the_trail_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypt(home, columns={"text": "encrypt"})

    def full(trail: Trail) -> None:
        raise AuditError("the disk is full")

    monkeypatch.setattr(Trail, "flush", full)
    with pytest.raises(AirflowFailException, match="the disk is full"):
        decrypt(home, columns=["text"])
    assert not list((home / "open").glob("*.parquet"))


def test_a_lost_keyring_is_not_replaced_by_a_fresh_one(home: Path) -> None:
    encrypt(home, columns={"text": "encrypt"})
    (home / "ai/keyring.json").unlink()
    with pytest.raises(AirflowFailException, match=r"keyring\.json: No such file"):
        decrypt(home, columns=["text"])
    assert not (home / "ai/keyring.json").exists()


# Retries, arguments


def test_a_retry_keeps_finished_parts_and_a_rotation_remakes_what_is_compared(home: Path) -> None:
    first = encrypt(home, columns={"text": "encrypt"}), encrypt(home, sink="hashed", columns={"text": "hash"})
    assert [summary["skipped"] for summary in first] == [0, 0]
    again = encrypt(home, columns={"text": "encrypt"}), encrypt(home, sink="hashed", columns={"text": "hash"})
    assert [summary["skipped"] for summary in again] == [3, 3]
    Keyring.rotate(home / "ai/keyring.json")
    rotated = encrypt(home, columns={"text": "encrypt"}), encrypt(home, sink="hashed", columns={"text": "hash"})
    assert [summary["skipped"] for summary in rotated] == [3, 0]


def test_shards_write_one_sink(home: Path) -> None:
    for shard in ("0/2", "1/2"):
        mask(home, shard=shard, batch_rows=1)
    assert restore(home)["ok"] == 3
    gather = GatherOperator(task_id="g", source=str(home / "restored"), target=str(home / "out.csv"), key="id")
    assert gather.execute(context())["rows"] == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda home: mask(home, profile="nope"), "profile 'nope' is not in the policy; it has: standard"),
        (lambda home: mask(home, key="customer_name"), "customer_name is the key, and the profile masks it"),
        (lambda home: mask(home, columns=["missing"]), "column missing"),
        (lambda home: encrypt(home, columns={"id": "encrypt"}), "column id is the key"),
        (lambda home: encrypt(home, columns={"text": "rot13"}), "columns: text: 'rot13' is no treatment"),
        (lambda home: encrypt(home, columns={"text": {"date_shift": {"subject": "nobody"}}}), "column nobody"),
        (lambda home: restore(home, "in.parquet"), "no column tokens_sealed"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(home: Path, make: Any, words: str) -> None:
    Keyring.open(home / "ai/keyring.json")
    with pytest.raises(AirflowFailException, match=words):
        make(home)
    assert not (home / "masked").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (MaskRowsOperator, {"profile": " "}, "profile is empty"),
        (MaskRowsOperator, {"profile": "p", "scope": "world"}, "expected one of row, run, team"),
        (MaskRowsOperator, {"profile": "p", "columns": "text"}, "expected a list of names"),
        (MaskRowsOperator, {"profile": "p", "max_error_rate": 2}, "between 0 and 1"),
        (EncryptColumnsOperator, {"table": "t", "columns": {}}, "expected a mapping"),
        (DecryptColumnsOperator, {"table": "t", "columns": "iban"}, "expected names"),
    ],
)
def test_what_is_wrong_in_the_dag_file_is_said_there(kind: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(task_id="t", source="s", sink="o", key="id", team="x", **changes)


# TaskFlow


def decorated(name: str, function: Any, **arguments: Any) -> Any:
    """The operator that Airflow makes of a decorated function."""
    with DAG("d", schedule=None):
        made = getattr(task, name)(key="id", team="support", **arguments)(function)()
    return made.operator


def test_functions_say_where_rows_are_and_tasks_do_the_rest(home: Path) -> None:
    def masked(day: str = "in") -> str:
        return f"{home}/{day}.parquet"

    def back() -> str:
        return str(home / "masked")

    def closed() -> str:
        return str(home / "c")

    mask_task = decorated("mask_rows", masked, profile="standard", sink=str(home / "masked"))
    assert mask_task.execute(context())["ok"] == 3
    assert decorated("restore_rows", back, sink=str(home / "restored")).execute(context())["ok"] == 3
    encrypt_task = decorated("encrypt_columns", masked, sink=str(home / "c"), table="t", columns={"text": "encrypt"})
    assert encrypt_task.execute(context())["ok"] == 3
    decrypt_task = decorated("decrypt_columns", closed, sink=str(home / "o"), table="t", columns=["text"])
    assert decrypt_task.execute(context())["ok"] == 3
    assert [row["text"] for row in rows_of(home / "o")] == [row["text"] for row in ROWS]


def test_a_function_that_returns_no_source_fails_its_task(home: Path) -> None:
    def nothing() -> None:
        return None

    made = decorated("mask_rows", nothing, profile="standard", sink=str(home / "masked"))
    with pytest.raises(AirflowFailException, match="the function returned NoneType; expected the URI of rows"):
        made.execute(context())
    with pytest.raises(TypeError, match="takes no source"):
        decorated("mask_rows", nothing, profile="standard", sink="s", source="x")
