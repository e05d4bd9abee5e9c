"""The double as its clients meet it, over HTTP, in a thread and in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from airflow_ai_provider.testing.behaviour import Faults, Latency, Limits, RawAnswer
from airflow_ai_provider.testing.invoice import Price, read_invoice
from airflow_ai_provider.testing.journal import read_requests
from airflow_ai_provider.testing.vendor import Vendor, VendorDouble, VendorProcess


@pytest.fixture(scope="module")
def process() -> Iterator[VendorProcess]:
    with VendorProcess() as started:
        yield started


@pytest.fixture(params=["thread", "process"])
def double(request: pytest.FixtureRequest) -> Iterator[Vendor]:
    """The same face over both ways to run."""
    if request.param == "thread":
        yield request.getfixturevalue("vendor")
    else:
        running: VendorProcess = request.getfixturevalue("process")
        running.reset()
        yield running
        running.configure(
            faults=Faults(), latency=Latency(), hold_after=None, limits=Limits(), script=(), api_key=None, answers={}
        )


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


def chat(user: str, **more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": user}]} | more


async def post(
    http: aiohttp.ClientSession, double: Vendor, body: Any, path: str = "/chat/completions", **more: Any
) -> tuple[int, Any, dict[str, str]]:
    """Status, parsed body and lower-case headers."""
    async with http.post(double.base_url + path, json=body, **more) as response:
        return response.status, orjson.loads(await response.read()), {k.lower(): v for k, v in response.headers.items()}


async def test_a_chat_answer_is_shaped_as_the_protocol_says_and_charged(
    http: aiohttp.ClientSession, double: Vendor
) -> None:
    double.configure(prices={"small": Price("0.15", "0.60")})
    status, body, headers = await post(http, double, chat("Where is [ORDER_AAAAA]?"), headers={"X-Request-Id": "mine"})
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "small"
    choice = body["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == 'Answer about "Where is [ORDER_AAAAA]?…": [ORDER_AAAAA]'
    usage = body["usage"]
    assert usage["prompt_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    (line,) = double.invoice()
    assert line.request_id == headers["x-request-id"]
    assert line.client_request_id == "mine"
    assert (line.prompt_tokens, line.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line.cost_nanodollars == 150 * usage["prompt_tokens"] + 600 * usage["completion_tokens"]
    stats = double.stats()
    assert (stats.requests, stats.billed, stats.in_flight, stats.max_in_flight) == (1, 1, 0, 1)
    assert stats.outcomes == {"ok": 1}
    assert stats.cost_nanodollars == line.cost_nanodollars
    double.configure(prices={"*": Price("0.15", "0.60")})


async def test_output_never_exceeds_the_limit_asked_for(http: aiohttp.ClientSession, vendor: VendorDouble) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        _, body, _ = await post(http, vendor, chat("a longer question than that", **{name: 4}))
        assert body["usage"]["completion_tokens"] == 4
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["choices"][0]["message"]["content"] == 'Answer about "a'


async def test_several_choices_are_charged_as_several(http: aiohttp.ClientSession, vendor: VendorDouble) -> None:
    _, one, _ = await post(http, vendor, chat("hi"))
    _, two, _ = await post(http, vendor, chat("hi", n=2))
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert two["usage"]["completion_tokens"] == 2 * one["usage"]["completion_tokens"]


async def test_a_stream_says_the_same_as_the_whole_answer(http: aiohttp.ClientSession, vendor: VendorDouble) -> None:
    _, whole, _ = await post(http, vendor, chat("Where is [ORDER_AAAAA]?"))
    asked = chat("Where is [ORDER_AAAAA]?", stream=True, stream_options={"include_usage": True})
    async with http.post(vendor.base_url + "/chat/completions", json=asked) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert len(vendor.invoice()) == 2


async def test_embeddings_come_as_floats_and_as_base64(http: aiohttp.ClientSession, double: Vendor) -> None:
    body = {"model": "embed", "input": ["one text", "another"], "dimensions": 8}
    status, floats, _ = await post(http, double, body, "/embeddings")
    _, encoded, _ = await post(http, double, body | {"encoding_format": "base64"}, "/embeddings")
    assert status == 200
    assert [item["index"] for item in floats["data"]] == [0, 1]
    for item, coded in zip(floats["data"], encoded["data"], strict=True):
        assert struct.unpack("<8f", base64.b64decode(coded["embedding"])) == pytest.approx(item["embedding"])
    assert floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [line.endpoint for line in double.invoice()] == ["embeddings", "embeddings"]
    _, single, _ = await post(http, double, {"model": "embed", "input": "one text", "dimensions": 8}, "/embeddings")
    assert single["data"][0]["embedding"] == floats["data"][0]["embedding"]
    _, tokens, _ = await post(http, double, {"model": "embed", "input": [[1, 2], [3]]}, "/embeddings")
    assert tokens["usage"]["prompt_tokens"] == 3
    assert len(tokens["data"][0]["embedding"]) == 1536


async def test_models_are_those_of_the_price_list(http: aiohttp.ClientSession, vendor: VendorDouble) -> None:
    vendor.configure(prices={"small": Price("1", "2"), "large": Price("3", "4")})
    async with http.get(vendor.base_url + "/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["large", "small"]
    status, body, _ = await post(http, vendor, chat("hi") | {"model": "unknown"})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert vendor.invoice() == []


REFUSALS = {
    "401": (401, "invalid_api_key"),
    "404": (404, "model_not_found"),
    "408": (408, None),
    "429": (429, "rate_limit_exceeded"),
    "500": (500, None),
    "502": (502, "bad_gateway"),
    "503": (503, None),
    "insufficient_quota": (429, "insufficient_quota"),
    "content_policy": (400, "content_policy_violation"),
    "context_length": (400, "context_length_exceeded"),
}


@pytest.mark.parametrize(("fault", "expected"), REFUSALS.items())
async def test_a_refusal_is_worded_as_a_vendor_words_it_and_not_charged(
    http: aiohttp.ClientSession, vendor: VendorDouble, fault: str, expected: tuple[int, str | None]
) -> None:
    vendor.configure(retry_after=2.5)
    status, body, headers = await post(http, vendor, chat(f"hi [[double:{fault}]]"))
    assert (status, body["error"]["code"]) == expected
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert headers["x-request-id"].startswith("req_")
    assert headers.get("retry-after") == ("3" if fault in ("429", "503") else None)
    assert headers.get("retry-after-ms") == ("2500" if fault in ("429", "503") else None)
    assert vendor.invoice() == []
    assert vendor.stats().outcomes == {fault: 1}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ([1], "/chat/completions"),
        ({"messages": []}, "/chat/completions"),
        ({"model": "m", "messages": []}, "/chat/completions"),
        (chat("hi", max_tokens=0), "/chat/completions"),
        (chat("hi", max_tokens="many"), "/chat/completions"),
        (chat("hi [[double:oops]]"), "/chat/completions"),
        ({"model": "m", "input": []}, "/embeddings"),
        ({"model": "m", "input": [""]}, "/embeddings"),
    ],
)
async def test_a_body_the_protocol_does_not_know_gets_400(
    http: aiohttp.ClientSession, vendor: VendorDouble, body: Any, path: str
) -> None:
    status, answer, _ = await post(http, vendor, body, path)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert vendor.stats().outcomes == {"bad_request": 1}


async def test_the_wrong_key_and_too_long_a_prompt_are_refused(http: aiohttp.ClientSession, double: Vendor) -> None:
    double.configure(api_key="right", context_tokens=5)
    assert (await post(http, double, chat("hi")))[0] == 401
    assert (await post(http, double, chat("hi"), headers={"Authorization": "Bearer wrong"}))[0] == 401
    right = {"Authorization": "Bearer right"}
    assert (await post(http, double, chat("hi"), headers=right))[0] == 200
    status, body, _ = await post(http, double, chat("one two three four five six"), headers=right)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "5 tokens" in body["error"]["message"]
    assert double.stats().outcomes == {"401": 2, "ok": 1, "context_length": 1}
    double.configure(context_tokens=128_000)


async def test_a_large_prompt_is_taken(http: aiohttp.ClientSession, vendor: VendorDouble) -> None:
    status, body, _ = await post(http, vendor, chat("word " * 100_000 + "x" * 2**21))
    assert (status, body["usage"]["prompt_tokens"]) == (200, 100_001)


async def test_connections_drop_before_an_answer_is_charged_after_it_and_midway(
    http: aiohttp.ClientSession, double: Vendor
) -> None:
    for fault in ("drop_before", "drop_after"):
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await post(http, double, chat(f"hi [[double:{fault}]]"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(http, double, chat("hi [[double:drop_midway]]"))
    assert [line.outcome for line in double.invoice()] == ["drop_after", "drop_midway"]
    assert double.stats().outcomes == {"drop_before": 1, "drop_after": 1, "drop_midway": 1}


async def test_a_hanging_request_never_answers_and_may_have_been_charged(
    http: aiohttp.ClientSession, double: Vendor
) -> None:
    for fault in ("hang", "hang_billed"):
        asked = asyncio.create_task(post(http, double, chat(f"hi [[double:{fault}]]")))
        await until(lambda fault=fault: double.stats().outcomes.get(fault) == 1)
        assert not asked.done()
        asked.cancel()
        await until(lambda: double.stats().in_flight == 0)
    assert [line.outcome for line in double.invoice()] == ["hang_billed"]


async def test_a_client_that_leaves_before_its_answer_is_charged_all_the_same(
    http: aiohttp.ClientSession, vendor: VendorDouble
) -> None:
    vendor.configure(hold_after=0)
    asked = asyncio.create_task(post(http, vendor, chat("hi")))
    await until(lambda: vendor.stats().in_flight == 1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    # The double sees the end of that connection before it answers a request that came later.
    assert (await post(http, vendor, chat("hi [[double:429]]")))[0] == 429
    assert vendor.invoice() == []
    vendor.configure(hold_after=None)
    await until(lambda: vendor.stats().in_flight == 0)
    assert vendor.stats().outcomes == {"client_left": 1, "429": 1}
    assert len(vendor.invoice()) == 1


async def test_requests_after_so_many_are_held_until_they_are_released(
    http: aiohttp.ClientSession, double: Vendor
) -> None:
    double.configure(hold_after=2)
    for number in range(2):
        assert (await post(http, double, chat(f"before {number}")))[0] == 200
    asked = [asyncio.create_task(post(http, double, chat(f"hi {number}"))) for number in range(5)]
    await until(lambda: double.stats().in_flight == 5)
    assert (await post(http, double, chat("hi [[double:429]]")))[0] == 429  # what is refused is not held
    double.configure(hold_after=4)
    await until(lambda: double.stats().in_flight == 3)
    assert len(double.invoice()) == 4
    double.configure(hold_after=None)
    assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 5
    assert len(double.invoice()) == 7
    assert (await post(http, double, chat("after")))[0] == 200


async def test_a_double_that_holds_requests_can_be_stopped(http: aiohttp.ClientSession) -> None:
    with VendorDouble(hold_after=0) as double:
        asked = asyncio.create_task(post(http, double, chat("hi")))
        await until(lambda: double.stats().in_flight == 1)
    with pytest.raises(aiohttp.ClientError):
        await asked
    assert double.invoice() == []


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110  (the double is no part of this loop)
            await asyncio.sleep(0.01)


async def test_answers_can_be_slow_malformed_empty_truncated_or_silent_about_usage(
    http: aiohttp.ClientSession, vendor: VendorDouble
) -> None:
    vendor.configure(slow_seconds=0.2)
    status, slow, _ = await post(http, vendor, chat("hi [[double:slow]]"))
    assert (status, slow["choices"][0]["finish_reason"]) == (200, "stop")
    with pytest.raises(orjson.JSONDecodeError):
        await post(http, vendor, chat("hi [[double:malformed]]"))
    _, empty, _ = await post(http, vendor, chat("hi [[double:empty]]"))
    assert empty["choices"][0]["message"]["content"] == ""
    assert empty["usage"]["completion_tokens"] == 0
    _, truncated, _ = await post(http, vendor, chat("hi [[double:truncated]]"))
    assert truncated["choices"][0]["finish_reason"] == "length"
    _, silent, _ = await post(http, vendor, chat("hi [[double:no_usage]]"))
    assert "usage" not in silent
    outcomes = ["slow", "malformed", "empty", "truncated", "no_usage"]
    assert [line.outcome for line in vendor.invoice()] == outcomes
    assert all(line.prompt_tokens for line in vendor.invoice())


async def test_a_script_is_consumed_in_order_and_outlives_other_settings(
    http: aiohttp.ClientSession, double: Vendor
) -> None:
    double.configure(script=["429", "ok", "503"])
    statuses = [(await post(http, double, chat("hi")))[0] for _ in range(2)]
    double.configure(faults=Faults(rate_500=1.0))
    statuses += [(await post(http, double, chat("hi")))[0] for _ in range(2)]
    assert statuses == [429, 200, 503, 500]


async def test_answers_of_ones_own_are_sent_and_charged_as_they_are(
    http: aiohttp.ClientSession, double: Vendor
) -> None:
    busy = RawAnswer('{"error": {"code": 429}}', headers={"retry-after": "7"})
    odd = RawAnswer("<ok>", status=201, headers={"Content-Type": "text/xml"}, cost_nanodollars=17)
    double.configure(answers={"busy": busy, "odd": odd}, script=["busy", "ok"])
    status, body, headers = await post(http, double, chat("one"))
    assert (status, body, headers["retry-after"]) == (200, {"error": {"code": 429}}, "7")
    assert (await post(http, double, chat("two")))[1]["object"] == "chat.completion"
    async with http.post(double.base_url + "/chat/completions", json=chat("[[double:odd]]")) as response:
        assert (response.status, await response.text()) == (201, "<ok>")
        assert response.headers["Content-Type"] == "text/xml"
    assert [(line.outcome, line.cost_nanodollars) for line in double.invoice() if line.outcome != "ok"] == [("odd", 17)]
    with pytest.raises(ValueError, match="unknown fault 'gone'"):
        double.configure(script=["gone"])


async def test_a_counted_marker_lets_the_retry_through(http: aiohttp.ClientSession, vendor: VendorDouble) -> None:
    statuses = [(await post(http, vendor, chat("hi [[double:500*2]]")))[0] for _ in range(4)]
    assert statuses == [500, 500, 200, 200]


async def test_the_same_load_meets_the_same_faults_in_any_order(http: aiohttp.ClientSession) -> None:
    async def faulted(order: list[int], seed: int) -> set[int]:
        with VendorDouble(faults=Faults(rate_429=0.2, rate_500=0.1), seed=seed) as double:
            found = await asyncio.gather(*(post(http, double, chat(f"row {n}")) for n in order))
        return {n for n, (status, _, _) in zip(order, found, strict=True) if status != 200}

    rows = list(range(60))
    first = await faulted(rows, seed=3)
    assert first == await faulted(rows[::-1], seed=3)
    assert first != await faulted(rows, seed=4)
    assert 5 < len(first) < 35


async def test_the_same_idempotency_key_is_charged_once(http: aiohttp.ClientSession, double: Vendor) -> None:
    """Also where the first answer was lost, and where both requests are under way at once."""
    key = {"Idempotency-Key": "row-1"}
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(http, double, chat("hi [[double:drop_after]]"), headers=key)
    status, body, headers = await post(http, double, chat("hi [[double:drop_after]]"), headers=key)
    assert status == 200
    assert headers["x-request-id"] == double.invoice()[0].request_id
    assert body["usage"]["completion_tokens"] == double.invoice()[0].completion_tokens
    assert (await post(http, double, chat("something else"), headers=key))[0] == 400

    double.configure(latency=Latency(0.2))
    both = await asyncio.gather(*(post(http, double, chat("yo"), headers={"Idempotency-Key": "2"}) for _ in range(5)))
    assert len({body["id"] for _, body, _ in both}) == 1
    assert [line.idempotency_key for line in double.invoice()] == ["row-1", "2"]
    assert double.stats().outcomes == {"drop_after": 1, "replayed": 5, "bad_request": 1, "ok": 1}


async def test_a_refused_request_leaves_its_idempotency_key_free(
    http: aiohttp.ClientSession, vendor: VendorDouble
) -> None:
    key = {"Idempotency-Key": "row-1"}
    assert (await post(http, vendor, chat("hi [[double:500*1]]"), headers=key))[0] == 500
    assert (await post(http, vendor, chat("hi [[double:500*1]]"), headers=key))[0] == 200
    vendor.configure(honour_idempotency=False)
    assert (await post(http, vendor, chat("hi [[double:500*1]]"), headers=key))[0] == 200
    assert len(vendor.invoice()) == 2


async def test_requests_beyond_the_quota_are_refused(http: aiohttp.ClientSession, double: Vendor) -> None:
    double.configure(limits=Limits(requests_per_minute=5))
    found = await asyncio.gather(*(post(http, double, chat(f"row {n}")) for n in range(8)))
    assert sorted(status for status, _, _ in found) == [200] * 5 + [429] * 3
    headers = next(headers for status, _, headers in found if status == 429)
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(headers["retry-after-ms"]) <= 60_000
    assert double.stats().outcomes == {"ok": 5, "over_limit": 3}
    double.configure(limits=Limits(tokens_per_minute=19))
    statuses = [(await post(http, double, chat("one two three four five"), headers={}))[0] for _ in range(3)]
    assert statuses == [200, 429, 429]


async def test_requests_in_flight_are_counted(http: aiohttp.ClientSession, vendor: VendorDouble) -> None:
    asked = [asyncio.create_task(post(http, vendor, chat(f"row {n} [[double:hang]]"))) for n in range(20)]
    await until(lambda: vendor.stats().in_flight == 20)
    for task in asked:
        task.cancel()
    await until(lambda: vendor.stats().in_flight == 0)
    assert vendor.stats().max_in_flight == 20


async def test_personal_data_is_found_however_it_was_escaped(http: aiohttp.ClientSession, double: Vendor) -> None:
    await post(http, double, chat("Mail 张三 at a@example.org"))
    await post(http, double, chat(json.dumps({"name": "李四 😀"})))
    await post(
        http, double, chat("nothing"), headers={"X-User": "b@example.org", "Authorization": "Bearer c@example.org"}
    )
    assert [request.number for request in double.find("张三")] == [1]
    assert [request.number for request in double.find("李四 😀")] == [2]
    assert [request.number for request in double.find("b@example.org")] == [3]
    assert double.find("c@example.org") == []
    assert [request.body["model"] for request in double.requests()] == ["small"] * 3
    double.reset()
    assert double.requests() == []
    assert double.stats().requests == 0


def test_a_search_in_a_memory_that_forgot_is_refused(vendor: VendorDouble) -> None:
    vendor._server.journal.received = 10
    with pytest.raises(RuntimeError, match="requests_file"):
        vendor.find("x")


def test_a_wrong_setting_is_refused_while_it_runs(double: Vendor) -> None:
    with pytest.raises(ValueError, match="unknown fault 'oops'"):
        double.configure(script=["oops"])


@pytest.mark.parametrize("kind", [VendorDouble, VendorProcess])
async def test_it_stops_with_requests_hanging_and_starts_again_on_its_port(
    http: aiohttp.ClientSession, kind: type[VendorDouble] | type[VendorProcess]
) -> None:
    with kind() as double:
        await post(http, double, chat("hi"))
        hanging = asyncio.create_task(post(http, double, chat("hi [[double:hang]]")))
        await until(lambda: double.stats().in_flight == 1)
        await asyncio.to_thread(double.stop)
        with pytest.raises(aiohttp.ClientError):
            await hanging
        with pytest.raises(aiohttp.ClientError):
            await post(http, double, chat("hi"))
        url = double.base_url
        await asyncio.to_thread(double.start)
        assert double.base_url == url
        assert (await post(http, double, chat("hi")))[0] == 200


async def test_the_invoice_on_disk_survives_a_kill_of_the_double(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    invoice, requests = tmp_path / "invoice.jsonl", tmp_path / "requests.jsonl"
    double = VendorProcess(invoice_file=invoice, requests_file=requests, api_key="k", latency=Latency(0.001))
    headers = {"Authorization": "Bearer k"}
    with double:
        got = [await post(http, double, chat(f"row {n}"), headers=headers) for n in range(3)]
        double.kill()
        assert [line.request_id for line in read_invoice(invoice)] == [h["x-request-id"] for _, _, h in got]
        assert len(list(read_requests(requests))) == 3
        assert [request.number for request in double.find("row 1")] == [2]
        double.start()
        assert (await post(http, double, chat("again"), headers=headers))[0] == 200
        assert (await post(http, double, chat("again")))[0] == 401
    assert len(read_invoice(invoice)) == 4


def test_the_process_ends_with_the_one_that_started_it() -> None:
    script = (
        "import sys\nfrom airflow_ai_provider.testing.vendor import VendorProcess\n"
        "d = VendorProcess(); d.start(); print(d._process.pid, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        watched = os.pidfd_open(int(owner.stdout.readline()))
        owner.send_signal(signal.SIGKILL)
    readable, _, _ = select.select([watched], [], [], 20)
    os.close(watched)
    assert readable


async def test_from_a_shell_it_prints_its_url_first_and_takes_its_settings_as_options(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    options = ["--invoice", str(tmp_path / "i.jsonl"), "--price", "small=1/2", "--rate-429", "1", "--script", "ok"]
    command = [sys.executable, "-m", "airflow_ai_provider.testing.vendor", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as shell:  # noqa: ASYNC220  (it starts first)
        assert shell.stdout is not None
        url = shell.stdout.readline().strip()
        statuses = []
        for _ in range(2):
            async with http.post(f"{url}/chat/completions", json=chat("hi")) as response:
                statuses.append(response.status)
        shell.send_signal(signal.SIGINT)
        assert shell.wait(20) == 0
    assert statuses == [200, 429]
    (line,) = read_invoice(tmp_path / "i.jsonl")
    assert line.cost_nanodollars == 1000 * line.prompt_tokens + 2000 * line.completion_tokens


def test_a_wrong_option_is_named() -> None:
    command = [sys.executable, "-m", "airflow_ai_provider.testing.vendor", "--price", "small=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected MODEL=INPUT/OUTPUT" in done.stderr


def test_the_package_imports_light() -> None:
    """Neither the package nor the double needs anything of Airflow or of the product it tests."""
    script = (
        "import sys, airflow_ai_provider.testing as t\nassert 'aiohttp' not in sys.modules\n"
        "import airflow_ai_provider.testing.vendor\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('airflow', 'litellm', 'pyarrow', 'sqlalchemy')"
        " or m.startswith('airflow_ai_provider.') and not m.startswith('airflow_ai_provider.testing')]\n"
        "assert not bad, bad\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
