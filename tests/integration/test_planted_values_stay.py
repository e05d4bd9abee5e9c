"""1,000 planted values of 27 types through the ``customer_support`` DAG: each comes back, and none is anywhere else.

A real Airflow run in a process of its own, with a vendor double. Looked through byte for byte: the
double's requests, Airflow's database (XCom, rendered fields), its logs, ledger, audit trail, response store, vectors,
and temporary files, also those that come and go. One more type is one more line of ``KINDS``, and a kind that detection
has and that is not among them fails here.
"""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml
from support.map_jobs import INPUT_USD, OUTPUT_USD
from test_no_personal_value_leaks import TOKEN, written_forms

from airflow_ai_provider.core.privacy.detectors.detector import Detector
from airflow_ai_provider.testing.vendor import VendorProcess

ROOT = Path(__file__).parents[2]
VALUES = 1000
PER_ROW = 4


@dataclass(frozen=True)
class Kind:
    """One type of personal value."""

    make: Callable[[random.Random, int], str]
    """Of a number: no two numbers give the same value."""
    says: str
    """A sentence that holds it."""
    column: str | None = None
    """A column that holds it too, which the profile masks."""
    sent: Callable[[str], str] = str
    """What of it must not leave."""


def luhn(digits: str) -> str:
    """``digits`` with the check digit of a payment card (ISO/IEC 7812-1)."""
    doubled = (int(digit) * (2 - index % 2) for index, digit in enumerate(reversed(digits)))
    total = sum(value - 9 if value > 9 else value for value in doubled)
    return f"{digits}{-total % 10}"


def iban(country: str, account: str) -> str:
    """ISO 13616: the check digits make the whole number 1 modulo 97."""
    number = int("".join(str(int(char, 36)) for char in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02d}{account}"


def cn_id(digits: str) -> str:
    """GB 11643: 17 digits and a check character, ISO 7064 MOD 11-2."""
    total = sum(int(digit) * 2 ** (17 - index) for index, digit in enumerate(digits))
    return digits + "10X98765432"[total % 11]


def born(number: int) -> date:
    return date(1931, 1, 1) + timedelta(days=23 * number)


def spaced(digits: str) -> str:
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def letters(rng: random.Random, count: int, alphabet: str = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789") -> str:
    return "".join(rng.choices(alphabet, k=count))


def jwt(rng: random.Random, number: int) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": f"customer-{number}"}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, letters(rng, 43)])


KINDS: dict[str, Kind] = {
    "email": Kind(lambda rng, n: f"{letters(rng, 5).lower()}.{n}@example.com", "Write to {v} please."),
    "phone_cn": Kind(lambda rng, n: f"138{n:04d}{rng.randrange(10**4):04d}", "我的电话是{v}，请回电。"),
    "phone": Kind(lambda rng, n: f"+44 7700 9{n:05d}", "Call me on {v}."),
    "card": Kind(lambda rng, n: luhn(f"411111{n:09d}"), "My card {v} was declined."),
    "card_spaced": Kind(lambda rng, n: spaced(luhn(f"550000{n:09d}")), "The other card is {v}."),
    "cn_id": Kind(lambda rng, n: cn_id(f"1101011990{1 + n % 12:02d}{1 + n % 28:02d}{n % 1000:03d}"), "身份证{v}。"),
    "iban": Kind(lambda rng, n: iban("DE", f"37040044{n:010d}"), "My account is {v}."),
    "ip": Kind(lambda rng, n: f"10.{n % 250}.{n // 250}.{rng.randrange(1, 255)}", "It says login from {v}."),
    "ip6": Kind(lambda rng, n: f"2001:db8:{n:x}:1::{rng.randrange(1, 65535):x}", "Then there was {v}, too."),
    "api_key": Kind(lambda rng, n: f"AKIA{letters(rng, 16, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567')}", "Our key is {v}."),
    "jwt": Kind(jwt, "The app shows {v} as an error."),
    "connection_string": Kind(
        lambda rng, n: f"postgres://crm:{letters(rng, 14)}{n}@db.example.com/crm",
        "We connect by {v} as agreed.",
        sent=lambda url: url.split(":")[2].partition("@")[0],
    ),
    "url": Kind(
        lambda rng, n: f"https://portal.example.com/u/{letters(rng, 8)}{n}",
        "The page {v} shows an error.",
        sent=lambda url: url.rpartition("/")[2],
    ),
    "mac": Kind(lambda rng, n: f"00:1B:44:{n >> 8:02X}:{n & 255:02X}:{rng.randrange(256):02X}", "Device {v} is mine."),
    "passport": Kind(lambda rng, n: f"{rng.choice('CFGH')}{rng.randrange(1, 10)}{n:07d}", "My passport number is {v}."),
    "passport_cn": Kind(lambda rng, n: f"E{rng.randrange(1, 10)}{n:07d}", "护照号{v}。"),
    "driver_license": Kind(lambda rng, n: f"D{4_000_000 + n}{rng.randrange(100, 1000)}", "My driving licence is {v}."),
    "ssn": Kind(lambda rng, n: f"{rng.randrange(100, 600)}-{1 + n % 99:02d}-{1000 + n}", "My SSN is {v}."),
    "bank_account": Kind(lambda rng, n: f"{rng.randrange(10**6, 10**7)}{n:05d}", "Bank account number {v} is mine."),
    "birth_date": Kind(lambda rng, n: f"{born(n):%d/%m/%Y}", "I was born on {v}."),
    "birth_date_zh": Kind(lambda rng, n: f"{born(n).year}年{born(n).month}月{born(n).day}日", "出生日期{v}。"),
    "address": Kind(lambda rng, n: f"{1000 + n} Maple Street, Springfield, IL 62704", "I live at {v}."),
    "address_zh": Kind(lambda rng, n: f"上海市浦东新区世纪大道{1000 + n}号2栋301室", "地址是{v}。"),
    "cn_plate": Kind(lambda rng, n: f"京{rng.choice('ABCDEF')}{n:05d}", "车牌{v}。"),
    "name": Kind(lambda rng, n: f"{letters(rng, 6).title()} Nowak{n}", "I am {v}.", column="customer_name"),
    "name_zh": Kind(lambda rng, n: f"欧阳{chr(0x6958 + n)}{chr(0x6959 + n)}", "我叫{v}。", column="alias"),
    "account": Kind(lambda rng, n: f"HP-{n:05d}-{letters(rng, 4)}", "It is about contract {v}.", column="account"),
}  # fmt: skip
PROFILE = {
    "detect": ["standard", "url"],
    "columns": {"customer_name": "PERSON", "alias": "PERSON", "account": "ACCOUNT"},
}


@dataclass(frozen=True)
class Planted:
    row: str
    kind: str
    value: str

    @property
    def secret(self) -> str:
        return KINDS[self.kind].sent(self.value)


def plant(folder: Path) -> list[Planted]:
    """Write the inquiries, ``PER_ROW`` values each, all types in turn."""
    rng = random.Random(5)
    names = list(KINDS)
    planted, rows = [], []
    for number in range(VALUES // PER_ROW):
        row = {"inquiry_id": f"PLANT-{number:04d}", "language": "en", "difficulty": "simple"}
        row |= {"customer_name": "", "alias": "", "account": ""}
        sentences = []
        for offset in range(PER_ROW):
            index = number * PER_ROW + offset
            name = names[index % len(names)]
            kind = KINDS[name]
            value = kind.make(rng, index)
            planted.append(Planted(row["inquiry_id"], name, value))
            sentences.append(kind.says.replace("{v}", value))
            row |= {kind.column: value} if kind.column else {}
        rows.append({**row, "text": " ".join(["My card has not arrived.", *sentences, "What can I do?"])})
    with (folder / "planted.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert len({one.value for one in planted}) == len(planted) == VALUES
    return planted


def policy(vendor: VendorProcess) -> str:
    price = {"input_per_mtok": float(INPUT_USD), "output_per_mtok": float(OUTPUT_USD)}
    small = {"model": "openai/double", "api_base": vendor.base_url, "price": price, "rpm": 1_000_000}
    route = {
        "tiers": {"simple": ["small"]},
        "escalate": {"on": ["empty", "restore"]},
        "reuse": {"scope": "team", "ttl": "1h"},
        "masking": "standard",
        "max_tokens": 400,
    }
    return yaml.safe_dump(
        {
            "version": 1,
            "deployments": {"small": small},
            "routes": {"support": route},
            "budgets": [{"team": "support", "period": "day", "limit_usd": 100}],
            "masking": {"standard": PROFILE},
        }
    )


RUN = """
import os, sys
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"] + "/customer_support.py")
run = bag.dags["customer_support"].test(run_conf={"input": sys.argv[1], "output": sys.argv[2]})
print("STATE", run.state)
"""


class TemporaryFiles(threading.Thread):
    """Keeps what was ever seen in a folder, also of files that are gone by the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._done = threading.Event()
        self.seen: dict[str, set[bytes]] = {}

    def run(self) -> None:
        while not self._done.wait(0.05):
            self._look()

    def stop(self) -> None:
        self._done.set()
        self.join()
        self._look()

    def _look(self) -> None:
        for path in self._folder.rglob("*"):
            try:
                if path.is_file() and path.stat().st_size < 50_000_000:
                    self.seen.setdefault(str(path), set()).add(path.read_bytes())
            except OSError:
                continue


@dataclass(frozen=True)
class Run:
    """What a run of the DAG left."""

    folder: Path
    planted: list[Planted]
    vendor: VendorProcess
    log: str
    temporary: dict[str, set[bytes]]

    def answers(self) -> dict[str, dict[str, str]]:
        (path,) = (self.folder / "answers").glob("*/answers.csv")
        with path.open(encoding="utf-8", newline="") as file:
            return {row["inquiry_id"]: row for row in csv.DictReader(file)}

    def seen_in(self, raw: bytes) -> Counter[str]:
        """Planted values in these bytes, by type."""
        return Counter(one.kind for one in self.planted if any(form in raw for form in written_forms(one.secret)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("planted")
    planted = plant(folder)
    (folder / "tmp").mkdir()
    with VendorProcess(requests_file=folder / "requests.jsonl") as vendor:
        (folder / "policy.yaml").write_text(policy(vendor), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        environment |= {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__AI__HOME": str(folder / "ai"),
            "AIRFLOW__AI__POLICY_PATH": str(folder / "policy.yaml"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "TMPDIR": str(folder / "tmp"),
        }
        temporary = TemporaryFiles(folder / "tmp")
        temporary.start()
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(folder / "planted.csv"), str(folder / "answers")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        temporary.stop()
        assert "STATE success" in done.stdout, (done.stdout + done.stderr)[-4000:]
        yield Run(folder, planted, vendor, done.stdout + done.stderr, temporary.seen)


@pytest.mark.timeout(300)
def test_every_value_comes_back_in_its_own_row(ran: Run) -> None:
    """The double repeats every token it saw, so each value that was masked is in its row's answer, and no other is."""
    answers = ran.answers()
    assert len(answers) == VALUES // PER_ROW
    assert {row["status"] for row in answers.values()} == {"ok"}
    back = Counter(one.kind for one in ran.planted if one.secret in answers[one.row]["answer"])
    assert back == Counter(one.kind for one in ran.planted)
    for key, row in answers.items():
        foreign = [one for one in ran.planted if one.row != key and one.secret in row["answer"]]
        assert not foreign, f"{key} holds a value of {foreign[0].row}"
        assert not TOKEN.search(row["answer"])


def test_every_kind_that_detection_has_is_planted() -> None:
    detector, rng = Detector(PROFILE["detect"]), random.Random(5)
    said = [kind.says.replace("{v}", kind.make(rng, 0)) for kind in KINDS.values()]
    assert {span.entity for text in said for span in detector.find(text)} >= detector.kinds
    assert len(KINDS) == 27


def test_the_vendor_saw_none(ran: Run) -> None:
    bodies = [json.dumps(request.body, ensure_ascii=False) for request in ran.vendor.requests()]
    assert len(bodies) >= VALUES // PER_ROW
    assert all(TOKEN.search(body) for body in bodies)
    assert ran.seen_in("\n".join(bodies).encode()) == Counter()
    assert ran.seen_in((ran.folder / "requests.jsonl").read_bytes()) == Counter()


def test_no_log_no_database_and_no_file_holds_one(ran: Run) -> None:
    assert ran.seen_in((ran.folder / "planted.csv").read_bytes()).total() == VALUES, "the search finds what is there"
    assert "rows (" in ran.log
    assert ran.seen_in(ran.log.encode()) == Counter()
    looked: set[str] = set()
    for home in ("airflow", "ai", "tmp"):
        for path in sorted((ran.folder / home).rglob("*")):
            if path.is_file():
                raw = path.read_bytes()
                raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
                assert ran.seen_in(raw) == Counter(), path
                looked.add(path.name)
    assert looked >= {"airflow.db", "ledger.db", "responses.db", "keyring.json"}
    assert any(name.endswith(".gz") for name in looked), "the audit trail was sealed"
    for name, contents in ran.temporary.items():
        assert ran.seen_in(b"\n".join(contents)) == Counter(), name


def test_xcom_rendered_fields_and_stored_answers_are_there_to_be_searched(ran: Run) -> None:
    """Or the searches of their files would prove nothing."""
    with sqlite3.connect(ran.folder / "airflow/airflow.db") as database:
        (xcoms,) = database.execute("SELECT count(*) FROM xcom").fetchone()
        (rendered,) = database.execute("SELECT count(*) FROM rendered_task_instance_fields").fetchone()
    with sqlite3.connect(ran.folder / "ai/responses.db") as store:
        (stored,) = store.execute("SELECT count(*) FROM responses").fetchone()
    assert xcoms >= 5
    assert rendered >= 3
    assert stored >= VALUES // PER_ROW
