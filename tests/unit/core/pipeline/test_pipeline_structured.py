"""Messages, attachments, tools and models along the whole path: what the vendor receives, and what the sink holds."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pydantic
import pytest
from support.pipeline import House, deployment, policy

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.testing.vendor import VendorDouble

PNG = b"\x89PNG\r\n\x1a\n" + b"picture" * 20
PROMPT = [
    {"role": "user", "content": "An example"},
    {"role": "assistant", "content": "yes"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "{{ text }}"}, {"type": "image", "uri": "{{ scan }}"}],
    },
]
MASKED: dict[str, Any] = {"masking": "m", "profiles": {"m": {"detect": ["email"]}}}


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> House:
    return House(tmp_path, vendor)


@pytest.fixture
def scans(house: House) -> Path:
    folder = house.folder / "scans"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "copy.png").write_bytes(PNG)
    (folder / "b.png").write_bytes(PNG + b"other")
    allowed = {"kinds": ["image"], "from": [str(folder)]}
    house.write(policy(deployments={"small": deployment(image_tokens=1000)}, attachments=allowed))
    return folder


def rows(folder: Path, *names: str) -> list[dict[str, Any]]:
    return [{"text": "What is it?", "scan": f"{folder}/{name}"} for name in names]


def test_examples_and_images_reach_the_vendor_and_equal_contents_are_asked_once(
    house: House, vendor: VendorDouble, scans: Path
) -> None:
    outcome = house.run(rows(scans, "a.png", "copy.png", "b.png", "none.png"), prompt=PROMPT)
    assert outcome.column("status") == ["ok", "ok", "ok", "error"]
    assert outcome.rows[3]["error"] == "prompt: image 1: no such file"
    assert sorted(outcome.column("reused")) == [False, False, False, True]
    sent = [request.body["messages"] for request in vendor.requests()]
    assert len(sent) == 2
    assert [message["role"] for message in sent[0]] == ["user", "assistant", "user"]
    urls = {messages[2]["content"][1]["image_url"]["url"] for messages in sent}
    assert urls == {f"data:image/png;base64,{base64.b64encode(c).decode()}" for c in (PNG, PNG + b"other")}
    assert house.left_over() == (0, 0)
    house.spent()


def test_a_row_of_a_function_whose_image_may_not_leave_is_not_sent(house: House, vendor: VendorDouble) -> None:
    def prompt(row: Any) -> Any:
        if row["text"] == "plain":
            return "plain"
        return [{"role": "user", "content": [{"type": "image", "uri": "/etc/passwd"}]}]

    outcome = house.run(["plain", "pictured"], prompt=prompt)
    assert outcome.column("status") == ["ok", "error"]
    assert outcome.rows[1]["error"].startswith("privacy: the route lets no image out")
    assert vendor.stats().requests == 1


def test_a_prompt_whose_images_may_not_leave_fails_before_any_call(house: House, vendor: VendorDouble) -> None:
    with pytest.raises(PrivacyError, match="attachments"):
        house.run([{"text": "x", "scan": "/a.png"}], prompt=PROMPT)
    assert vendor.requests() == []


def test_an_image_that_changes_under_way_costs_nothing(
    house: House, vendor: VendorDouble, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_ai_provider.core.prompts import attachments

    true = attachments.AttachmentReader.inlined

    async def late(self: Any, attachment: Any, part: Any) -> Any:
        (scans / "a.png").write_bytes(PNG + b"!")
        return await true(self, attachment, part)

    monkeypatch.setattr(attachments.AttachmentReader, "inlined", late)
    (row,) = house.run(rows(scans, "a.png"), prompt=PROMPT).rows
    assert (row["status"], row["error"]) == ("error", "prompt: image 1: it changed while its row was under way")
    assert vendor.requests() == []
    assert house.left_over() == (0, 0)
    assert house.spent() == 0


def test_a_plan_counts_rows_with_images_as_calls_and_reads_none(
    house: House, vendor: VendorDouble, scans: Path
) -> None:
    from airflow_ai_provider.core.job import Caller
    from airflow_ai_provider.core.jobs.plan import plan_spend

    job = house.job(rows(scans, "a.png", "gone.png"), prompt=PROMPT)
    plan = plan_spend(job, Caller("dag", "run-1", "answer"), house.settings)
    assert plan.calls == 2
    assert vendor.requests() == []


def test_tool_calls_are_the_answer_with_the_rows_values_in_them(house: House, vendor: VendorDouble) -> None:
    house.write(policy(**MASKED))
    tools = [{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]
    asked = {"tools": tools, "tool_choice": "required"}
    outcome = house.run(["write to ann@example.com"], **asked)
    (row,) = outcome.rows
    assert (row["status"], row["error"]) == ("ok", None)
    (call,) = json.loads(row["answer"])["tool_calls"]
    assert call["name"] == "refund"
    assert isinstance(call["arguments"], dict)
    (request,) = vendor.requests()
    assert request.body["tools"] == tools
    assert request.body["tool_choice"] == "required"
    again = house.run(["write to ann@example.com"], sink=str(house.folder / "again"), **asked).rows[0]
    assert (again["reused"], again["answer"]) == (True, row["answer"])
    other = house.run(["write to ann@example.com"], sink=str(house.folder / "plain")).rows[0]
    assert (other["reused"], "tool_calls" in other["answer"]) == (False, False)
    assert vendor.stats().requests == 2
    house.spent()


def test_calls_with_arguments_that_are_no_json_are_rejected(house: House) -> None:
    house.write(policy(**MASKED))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"required": ["to"]}}}
    forced = {"type": "function", "function": {"name": "f"}}
    (row,) = house.run(["x"], tools=[tool], tool_choice=forced).rows
    assert (row["status"], row["error"]) == ("rejected", "schema: tool_calls/0/arguments is not JSON")


def test_a_models_own_validator_rejects_what_its_schema_lets_pass(house: House) -> None:
    class Kind(pydantic.BaseModel):
        kind: str

        @pydantic.field_validator("kind")
        @classmethod
        def _never(cls, kind: str) -> str:
            raise ValueError(f"not {kind}")

    (row,) = house.run(["x"], output_schema=Kind.model_json_schema(), output_model=Kind).rows
    assert (row["status"], row["error"]) == ("rejected", "schema: kind breaks rule 'value_error' of Kind")
