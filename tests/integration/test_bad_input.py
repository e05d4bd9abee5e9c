"""What is wrong is said before money is spent: what, where, and what to do. A bad row fails alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.map_jobs import Lab, questions, write_jsonl
from support.map_process import Spec, prompt_with_bad_rows
from support.server import free_port

from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.errors import (
    AIProviderError,
    KeyringError,
    LedgerUnavailable,
    PolicyError,
    PromptError,
    SinkError,
    SourceError,
)
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorDouble

LOG = logging.getLogger(__name__)


@dataclass
class Case:
    """One thing wrong with an otherwise good job."""

    error: type[AIProviderError]
    says: tuple[str, ...]
    """Parts of the message: the place, what was expected, the remedy. ``{folder}`` is the test's folder."""
    files: Callable[[Path], object] = lambda folder: None
    """Makes or spoils files before the job is made."""
    job: dict[str, Any] = field(default_factory=dict)
    lab: dict[str, Any] = field(default_factory=dict)
    policy: Callable[[str], str] = lambda text: text
    settings: dict[str, Any] = field(default_factory=dict)


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)

    return write


def parquet_folder(folder: Path) -> None:
    """Two parts, the second with its middle overwritten: its footer is good, its pages are not."""
    (folder / "parts").mkdir()
    for number in range(2):
        rows = questions(4000, seed=number, prefix=f"part{number}")
        pq.write_table(pa.Table.from_pylist(rows), folder / "parts" / f"{number}.parquet", write_page_checksum=True)
    path = folder / "parts" / "1.parquet"
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))


def truncated_parquet(folder: Path) -> None:
    (folder / "parts").mkdir()
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(questions(10, prefix=f"p{number}")), folder / "parts" / f"{number}.parquet")
    path = folder / "parts" / "1.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def open_keyring(folder: Path) -> None:
    text("home/keyring.json", "{}")(folder)
    (folder / "home" / "keyring.json").chmod(0o644)


CASES: dict[str, Case] = {
    "missing file": Case(SourceError, ("{folder}/none.csv", "does not exist", "expected"), job={"source": "none.csv"}),
    "empty file": Case(
        SourceError, ("{folder}/empty.csv", "empty"), files=text("empty.csv", ""), job={"source": "empty.csv"}
    ),
    "header only": Case(
        SourceError, ("{folder}/head.csv", "no rows"), files=text("head.csv", "id,text\n"), job={"source": "head.csv"}
    ),
    "duplicate key": Case(
        SourceError,
        ("{folder}/twice.csv", "column id", "not unique", "'b' in rows 2, 4", "choose a unique column", "#row"),
        files=text("twice.csv", "id,text\na,x\nb,x\nc,x\nb,x\n"),
        job={"source": "twice.csv"},
    ),
    "empty key": Case(
        SourceError,
        ("{folder}/nokey.csv", "row 2", "column id", "is empty", "give every row a key"),
        files=text("nokey.csv", "id,text\na,x\n,x\n"),
        job={"source": "nokey.csv"},
    ),
    "missing key column": Case(
        SourceError, ("{folder}/in.jsonl", "key names column idd", "did you mean id?", "id, text"), job={"key": "idd"}
    ),
    "wrong column in the prompt": Case(
        PromptError, ("prompt", "no column txt", "id, text"), job={"prompt": "Answer {{ txt }}"}
    ),
    "template that does not parse": Case(
        PromptError, ("{folder}/broken.j2:2:",), files=text("broken.j2", "Hello\n{{ text "), job={"prompt": "broken.j2"}
    ),
    "prompt file missing": Case(PromptError, ("{folder}/none.j2", "no such prompt file"), job={"prompt": "none.j2"}),
    "unknown route": Case(PolicyError, ("'suport'", "not in the policy", "it has: support"), job={"route": "suport"}),
    "model without a price": Case(
        PolicyError,
        ("deployments.small", "'openai/double'", "no price", "add price: {{input_per_mtok:"),
        lab={"deployment": {"price": None}},
    ),
    "team without budget": Case(
        PolicyError,
        ("no budget applies to team 'marketing'", "add one under budgets", "{{team: marketing,"),
        job={"team": "marketing"},
        policy=lambda policy: policy.replace("- period: total\n  limit_usd: 1000\n", ""),
    ),
    "no policy file": Case(
        PolicyError,
        ("{folder}/elsewhere.yaml", "no policy file there", "policy_path"),
        settings={"policy_path": "elsewhere.yaml"},
    ),
    "policy with an unknown key": Case(
        PolicyError,
        ("policy.yaml:10: deployments.small.concurency: unknown key",),
        policy=lambda policy: policy.replace("concurrency:", "concurency:"),
    ),
    "policy that is not YAML": Case(
        PolicyError, ("policy.yaml:3:",), policy=lambda policy: policy.replace("version: 1", "version: 1\n{oops")
    ),
    "masking profile missing": Case(
        PolicyError,
        ("policy.yaml:", "routes.support.masking: no masking profile 'strict'", "write off"),
        lab={"route": {"masking": "strict"}},
    ),
    "deployment missing": Case(
        PolicyError,
        ("policy.yaml:", "routes.support.tiers.simple", "no deployment 'smal'", "there are: small"),
        lab={"route": {"tiers": {"simple": ["smal"]}}},
    ),
    "connection that cannot be resolved": Case(
        PolicyError,
        ("deployments.small", "'openai_default'", "no connections are configured"),
        lab={"deployment": {"connection": "openai_default"}},
    ),
    "unreachable ledger": Case(
        LedgerUnavailable,
        ("ledger postgresql+psycopg://user:***@127.0.0.1:", "no call is made without it", "ledger_conn_id"),
        settings={"ledger_url": f"postgresql+psycopg://user:sesame@127.0.0.1:{free_port()}/ledger"},
    ),
    "home that cannot be written": Case(
        LedgerUnavailable,
        ("{folder}/home", "must be a writable folder"),
        files=text("home", "a file where a folder should be"),
    ),
    "corrupt page in a folder of Parquet": Case(
        SourceError, ("{folder}/parts/1.parquet",), files=parquet_folder, job={"source": "parts"}
    ),
    "truncated file in a folder of Parquet": Case(
        SourceError, ("{folder}/parts/1.parquet",), files=truncated_parquet, job={"source": "parts"}
    ),
    "output column clash": Case(
        SourceError,
        ("{folder}/clash.csv", "column status", "rename it in the source"),
        files=text("clash.csv", "id,text,status\na,x,open\n"),
        job={"source": "clash.csv"},
    ),
    "not a JSON schema": Case(
        PromptError, ("output_schema", "not a JSON schema"), job={"output_schema": {"type": "objekt"}}
    ),
    "sink with a foreign file": Case(
        SinkError,
        ("{folder}/answers", "notes.txt", "choose an empty or a new folder"),
        files=text("answers/notes.txt", "mine"),
    ),
    "sink that is a file": Case(SinkError, ("{folder}/out.parquet", "expected a folder"), job={"sink": "out.parquet"}),
    "key ring readable by others": Case(
        KeyringError, ("{folder}/home/keyring.json", "mode 0644", "expected 0600", "chmod 600"), files=open_keyring
    ),
    "not UTF-8": Case(
        SourceError,
        ("{folder}/gbk.csv", "not UTF-8", "iconv"),
        files=text("gbk.csv", "id,text\na,卡\n".encode("gb18030")),
        job={"source": "gbk.csv"},
    ),
    "semicolons": Case(
        SourceError,
        ("{folder}/semi.csv", "separate the values by commas"),
        files=text("semi.csv", "id;text\na;x\n"),
        job={"source": "semi.csv"},
    ),
    "broken JSON line": Case(
        SourceError,
        ("{folder}/broken.jsonl", "line 2"),
        files=text("broken.jsonl", '{"id": "a", "text": "x"}\n{"id": "b", "text": \n'),
        job={"source": "broken.jsonl"},
    ),
    "unknown format": Case(
        SourceError,
        ("{folder}/in.xlsx", "format", "expected"),
        files=text("in.xlsx", "PK"),
        job={"source": "in.xlsx"},
    ),
}


def made(case: Case, folder: Path, vendor: VendorDouble) -> Spec:
    case.files(folder)
    lab = Lab(folder, vendor, **case.lab)
    job = {"source": "in.jsonl", **case.job}
    write_jsonl(folder / "in.jsonl", questions(5))
    for name in ("source", "sink"):
        if name in job:
            job[name] = str(folder / job[name])
    if str(job.get("prompt", "")).endswith(".j2"):
        job["prompt"] = f"file:{folder / job['prompt']}"
    spec = lab.spec(job.pop("source"), **job)
    policy = lab.settings.policy_path
    policy.write_text(case.policy(policy.read_text()))
    settings = dict(case.settings)
    if "policy_path" in settings:
        settings["policy_path"] = folder / settings["policy_path"]
    return replace(spec, settings=replace(spec.settings, **settings))


@pytest.mark.parametrize("name", CASES)
def test_a_bad_job_is_refused_before_any_call(name: str, tmp_path: Path, vendor: VendorDouble) -> None:
    case = CASES[name]
    spec = made(case, tmp_path, vendor)
    with pytest.raises(AIProviderError) as caught:
        run_map(spec.job, spec.caller, spec.settings, log=LOG)
    message = str(caught.value)
    assert type(caught.value) is case.error, message
    for part in case.says:
        assert part.format(folder=tmp_path) in message
    assert "Traceback" not in message
    assert "sesame" not in message
    assert vendor.stats().requests == 0
    assert not list(tmp_path.glob("answers/part-*"))


def test_what_was_put_right_runs(tmp_path: Path, vendor: VendorDouble) -> None:
    """The job that every case spoils is a good one."""
    lab = Lab(tmp_path, vendor)
    assert lab.run(write_jsonl(tmp_path / "in.jsonl", questions(5)))["ok"] == 5
    assert vendor.stats().requests == 5


def test_bad_rows_fail_alone(tmp_path: Path, vendor: VendorDouble) -> None:
    lab = Lab(tmp_path, vendor, deployment={"context_tokens": 2000})
    rows = questions(20)
    rows[3] = {"id": "raises", "text": "a secret of the row"}
    rows[7] = {"id": "surrogate", "text": "some text"}
    rows[11] = {"id": "nothing", "text": "some text"}
    rows[13] = {"id": "too long", "text": "word " * 40_000}
    summary = lab.run(write_jsonl(tmp_path / "in.jsonl", rows), prompt=prompt_with_bad_rows, batch_rows=6)
    assert (summary["rows"], summary["ok"], summary["error"]) == (20, 16, 4)
    output = {row["id"]: row for row in lab.output()}
    assert [row["id"] for row in lab.output()] == [row["id"] for row in rows]
    bad = {key: row["error"] for key, row in output.items() if row["status"] != "ok"}
    assert bad.keys() == {"raises", "surrogate", "nothing", "too long"}
    assert bad["raises"] == "prompt: the prompt function raised ValueError for this row"
    assert "surrogate" in bad["surrogate"]
    assert "must return text" in bad["nothing"]
    assert bad["too long"].startswith("context_window: ")
    assert all(output[key]["answer"] is None and output[key]["cost_usd"] == 0 for key in bad)
    assert vendor.stats().requests == 16
    with lab.books() as books:
        books.assert_settled()
        assert {row["row_key"] for row in books.requests()} == output.keys() - bad.keys()


def test_a_row_the_vendor_finds_too_long_fails_alone(tmp_path: Path, vendor: VendorDouble) -> None:
    """Nobody said what the model takes: the vendor refuses, which costs nothing."""
    vendor.configure(context_tokens=300)
    lab = Lab(tmp_path, vendor)
    rows = questions(10)
    rows[4]["text"] = "word " * 1000
    summary = lab.run(write_jsonl(tmp_path / "in.jsonl", rows))
    assert (summary["ok"], summary["errors"]) == (9, {"context_window": 1})
    assert len(vendor.invoice()) == 9
    with lab.books() as books:
        books.assert_settled()
        (refused,) = books.requests("error")
    assert (refused["row_key"], refused["error_type"], refused["cost_nano"]) == (rows[4]["id"], "context_window", 0)


def test_a_null_in_the_prompts_column_is_not_sent_as_a_word(tmp_path: Path, vendor: VendorDouble) -> None:
    """A null has no text to answer: the row is an error, and nobody pays for a question about "None"."""
    lab = Lab(tmp_path, vendor)
    rows = questions(6)
    rows[2]["text"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    summary = lab.run(str(tmp_path / "in.parquet"))
    assert vendor.find("Customer writes: None") == []
    assert (summary["ok"], summary["error"]) == (5, 1)
    (bad,) = [row for row in lab.output() if row["status"] != "ok"]
    assert bad["id"] == rows[2]["id"]
    assert bad["error"].startswith("prompt: prompt: text is null in this row")
    optional = (
        "{% if text %}About {{ text }}{% else %}No text{% endif %} {{ text or '-' }} {{ text | default('', true) }}"
    )
    assert lab.run(str(tmp_path / "in.parquet"), prompt=optional)["ok"] == 6
    assert len(vendor.find("No text - ")) == 1


def test_a_source_that_breaks_in_the_middle_loses_nothing_paid(tmp_path: Path, vendor: VendorDouble) -> None:
    """A damaged page of a column that is not the key is met only on the way: calls under way end and are settled."""
    vendor.configure(latency=Latency(0.1, 0.1))
    lab = Lab(tmp_path, vendor)
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        rows = questions(150, prefix=f"part{number}")
        file = folder / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file, write_page_checksum=True, use_dictionary=False)
    path = folder / "1.parquet"
    good = path.read_bytes()
    text = pq.ParquetFile(path).metadata.row_group(0).column(1)
    start = text.data_page_offset + text.total_compressed_size // 2
    path.write_bytes(good[:start] + bytes(8) + good[start + 8 :])
    outcome = lab.start(lab.spec(str(folder))).outcome()
    assert (outcome["error"], str(path) in outcome["message"]) == ("SourceError", True), outcome
    paid = vendor.invoice()
    assert 0 < len(paid) <= 150
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(paid)
        assert len(books.requests("ok")) == len(paid)
    assert not (lab.sink / "manifest.json").exists()
    path.write_bytes(good)
    assert lab.run(str(folder), caller={"try_number": 2})["ok"] == 300
    assert len(vendor.invoice()) == 300


def test_a_ledger_that_goes_away_stops_the_calls(tmp_path: Path, vendor: VendorDouble) -> None:
    """The ledger's folder becomes unusable between two jobs: the second makes no call."""
    lab = Lab(tmp_path, vendor)
    source = write_jsonl(tmp_path / "in.jsonl", questions(5))
    lab.run(source)
    for path in lab.home.glob("ledger.db*"):
        path.unlink()
    (lab.home / "ledger.db").mkdir()
    with suppress(FileNotFoundError):
        (lab.sink / "manifest.json").unlink()
    outcome = lab.start(lab.spec(source, caller={"run_id": "run-2"})).outcome()
    assert outcome["error"] == "LedgerUnavailable"
    assert "ledger.db" in outcome["message"]
    assert vendor.stats().requests == 5
