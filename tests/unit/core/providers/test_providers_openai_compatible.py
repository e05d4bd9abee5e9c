"""What is our own adapter's: who it speaks for, how it addresses them, and what it must not load."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pipeline import KEY as CONNECTION_KEY
from support.pipeline import House, deployment, policy
from support.providers import (
    KEY,
    PERMANENT,
    TRANSIENT,
    Expected,
    answering,
    ask,
    completion,
    failure,
    provider,
    request,
)

from airflow_ai_provider.core.jobs.validate import check_policy
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers import open_provider, replies
from airflow_ai_provider.core.providers.base import not_charged
from airflow_ai_provider.core.providers.openai_compatible import OpenAICompatibleProvider, _failure, _proxy
from airflow_ai_provider.core.providers.vendors import OPENAI_COMPATIBLE, adapter_of, address_of
from airflow_ai_provider.core.settings import Endpoint
from airflow_ai_provider.errors import PolicyError, VendorError
from airflow_ai_provider.testing.vendor import VendorDouble

AZURE = "https://name.openai.azure.com"


def made(model: str, **more: Any) -> Deployment:
    return Deployment(model=model, **more)


@pytest.mark.parametrize(
    ("deployment", "endpoint", "adapter"),
    [
        (made("openai/gpt-4o-mini"), Endpoint(), "openai_compatible"),
        (made("hosted_vllm/qwen", api_base="http://h/v1"), Endpoint(), "openai_compatible"),
        (made("azure/x"), Endpoint(AZURE, KEY), "openai_compatible"),
        (made("azure/x"), Endpoint(AZURE, extra={"client_secret": "s", "tenant_id": "t"}), "litellm"),
        (made("anthropic/claude-sonnet-4-5"), Endpoint(), "litellm"),
        (made("bedrock/x"), Endpoint("http://h/v1"), "litellm"),
        (made("gemini/x"), Endpoint("https://generativelanguage.googleapis.com/v1beta/openai"), "openai_compatible"),
        (made("openai/x", adapter="litellm"), Endpoint(), "litellm"),
        (made("mine/x", adapter="openai_compatible", api_base="http://h/v1"), Endpoint(), "openai_compatible"),
    ],
)
def test_the_adapter_that_fits_is_taken_unless_the_policy_names_one(
    deployment: Deployment, endpoint: Endpoint, adapter: str
) -> None:
    assert adapter_of(deployment, endpoint) == adapter


@pytest.mark.parametrize(
    ("deployment", "endpoint", "url", "model"),
    [
        (made("openai/gpt-4o"), Endpoint(None, KEY), "https://api.openai.com/v1/chat/completions", "gpt-4o"),
        (made("openrouter/a/b"), Endpoint(None, KEY), "https://openrouter.ai/api/v1/chat/completions", "a/b"),
        (made("hosted_vllm/q"), Endpoint("http://h:8000/v1/"), "http://h:8000/v1/chat/completions", "q"),
        (made("hosted_vllm/q"), Endpoint("http://h/v1/chat/completions"), "http://h/v1/chat/completions", "q"),
        (made("openai/q", api_base="http://a/v1"), Endpoint("http://b/v1"), "http://a/v1/chat/completions", "q"),
        (made("ollama/llama3.2"), Endpoint(), "http://localhost:11434/v1/chat/completions", "llama3.2"),
        (made("ollama/llama3.2"), Endpoint("http://gpu:11434"), "http://gpu:11434/v1/chat/completions", "llama3.2"),
        (made("litellm_proxy/team/x"), Endpoint("http://proxy:4000"), "http://proxy:4000/chat/completions", "team/x"),
        (
            made("azure/dep"),
            Endpoint(f"{AZURE}/", KEY, extra={"api_version": "2024-10-21"}),
            f"{AZURE}/openai/deployments/dep/chat/completions?api-version=2024-10-21",
            "dep",
        ),
        (made("azure/dep"), Endpoint(f"{AZURE}/openai/v1", KEY), f"{AZURE}/openai/v1/chat/completions", "dep"),
        (
            made("azure/dep"),
            Endpoint(f"{AZURE}/openai/deployments/dep", KEY, extra={"api_version": "2024-10-21"}),
            f"{AZURE}/openai/deployments/dep/chat/completions?api-version=2024-10-21",
            "dep",
        ),
    ],
)
def test_where_requests_go(deployment: Deployment, endpoint: Endpoint, url: str, model: str) -> None:
    address = address_of("small", deployment, endpoint)
    assert (address.url, address.model) == (url, model)
    assert KEY not in repr(address)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/o1", "max_completion_tokens"),
        ("openai/o4-mini-2025-04-16", "max_completion_tokens"),
        ("openai/gpt-5", "max_completion_tokens"),
        ("openai/gpt-5.1-mini", "max_completion_tokens"),
        ("openai/gpt-4o", "max_tokens"),
        ("openai/omni", "max_tokens"),
        ("hosted_vllm/gpt-5", "max_tokens"),
        ("azure/gpt-5", "max_completion_tokens"),
        ("azure/o_series/mine", "max_completion_tokens"),
        ("azure/gpt5_series/mine", "max_completion_tokens"),
        ("azure/mine", "max_tokens"),
    ],
)
def test_what_the_limit_of_an_answer_is_called(model: str, name: str) -> None:
    address = address_of("small", made(model, api_base=f"{AZURE}/openai/v1"), Endpoint(api_key=KEY))
    assert address.limit_name == name
    assert address.model in model.split("/")


def test_who_is_billed_and_which_version_are_no_part_of_the_body() -> None:
    extra = {"organization": "org-1", "project": "p-1", "api_version": "2024-10-21", "user": "batch"}
    address = address_of("small", made("openai/x"), Endpoint(None, KEY, {"X-Team": "a"}, extra))
    assert (address.model, address.params) == ("x", {"user": "batch"})
    sent = {name: address.headers[name] for name in ("OpenAI-Organization", "OpenAI-Project", "X-Team")}
    assert sent == {"OpenAI-Organization": "org-1", "OpenAI-Project": "p-1", "X-Team": "a"}
    assert address.headers["Authorization"] == f"Bearer {KEY}"


def test_a_server_of_ones_own_needs_no_key_and_gets_none() -> None:
    address = address_of("small", made("hosted_vllm/x", api_base="http://h/v1"), Endpoint())
    assert "Authorization" not in address.headers


@pytest.mark.parametrize(
    ("deployment", "endpoint", "message"),
    [
        (
            made("azure/x"),
            Endpoint(None, KEY),
            "api_base is not given: a deployment of azure needs it, such as https://NAME",
        ),
        (made("azure/x"), Endpoint(AZURE, KEY), "api_version is not given: Azure OpenAI needs one, such as 2024-10-21"),
        (made("azure/x"), Endpoint(f"{AZURE}/openai/v1"), "no API key: give the deployment a connection"),
        (
            made("azure/x", adapter="openai_compatible"),
            Endpoint(f"{AZURE}/openai/v1", extra={"client_secret": "s"}),
            "its connection signs in by client_secret: write adapter: litellm",
        ),
        (made("hosted_vllm/x"), Endpoint(), "api_base is not given: a deployment of hosted_vllm needs it"),
        (made("mine/x", adapter="openai_compatible"), Endpoint(None, KEY), "api_base is not given"),
        (made("openai/x"), Endpoint(), "no API key: give the deployment a connection that holds one"),
        (made("openai/x"), Endpoint(None, f"{KEY}\n"), "the API key of its connection begins or ends with a space"),
        (made("openai/x"), Endpoint("api.host/v1", KEY), "api_base: expected a URL such as https://host/v1"),
        (made("openai/x"), Endpoint("https://me:secret-1@host/v1", KEY), "api_base: expected a URL"),
        (made("openai/x"), Endpoint("https://host/v1?key=secret-1", KEY), "api_base: expected a URL"),
        (made("openai/x"), Endpoint("https://host:99999/v1", KEY), "api_base: expected a URL"),
        (
            made("openai/x"),
            Endpoint(None, KEY, {"X-A": "secret-1\r\nX-B: c"}),
            "header 'X-A' of its connection has",
        ),
        (made("openai/x"), Endpoint(None, KEY, extra={"ssl_verify": False}), "its connection's extra sets ssl_verify"),
        (made("openai/x", params={"a": {1, 2}}), Endpoint(None, KEY), "params cannot be written as JSON"),
    ],
)
def test_what_could_never_work_is_found_before_the_first_call(
    deployment: Deployment, endpoint: Endpoint, message: str
) -> None:
    with pytest.raises(PolicyError, match=r"^deployments\.small: ") as caught:
        address_of("small", deployment, endpoint)
    assert message in str(caught.value)
    assert not [secret for secret in (KEY, "secret-1") if secret in str(caught.value)]


def test_the_policy_check_says_what_is_wrong_with_an_address(tmp_path: Path, vendor: VendorDouble) -> None:
    house = House(tmp_path, vendor)
    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    small = {
        "good": deployment(),
        "cloud": deployment(model="azure/x", connection=None, price=price),
        "keyless": deployment(connection=None),
        "gone": deployment(connection="nowhere"),
        "away": deployment(model="offline/extractive", adapter="litellm", connection=None),
    }
    house.write(policy(deployments=small, tiers={"simple": list(small)}))
    findings = check_policy(house.settings)
    assert [finding.split(": ")[0] for finding in findings] == [f"deployments.{name}" for name in list(small)[1:]]
    assert "api_base is not given" in findings[0]
    assert "no API key" in findings[1]
    assert "no connection 'nowhere'" in findings[2]
    assert "the offline model has none" in findings[3]


def test_every_vendor_of_the_table_is_reached_over_tls_or_on_this_host() -> None:
    urls = [url for url in OPENAI_COMPATIBLE.values() if url]
    assert all(url.startswith(("https://", "http://127.0.0.1", "http://localhost")) for url in urls)


# Requests


async def test_the_routes_params_go_over_the_deployments_and_the_gateways_over_both(vendor: VendorDouble) -> None:
    asked = provider(
        vendor.base_url, adapter="openai_compatible", params={"temperature": 0, "tool_choice": "none", "seed": 1}
    )
    await ask(asked, params={"temperature": 1, "model": "another", "max_tokens": 10**6}, tool_choice="auto")
    (seen,) = vendor.requests()
    assert seen.body == {
        "model": "gpt-4o-mini",
        "messages": seen.body["messages"],
        "max_tokens": 50,
        "temperature": 1,
        "tool_choice": "auto",
        "seed": 1,
    }


@pytest.mark.parametrize("prompt", ["half \ud83d", {1, 2}])
async def test_what_cannot_be_written_is_not_sent(vendor: VendorDouble, prompt: Any) -> None:
    error = await failure(provider(vendor.base_url, adapter="openai_compatible"), prompt)
    assert Expected.of(error) == Expected(PERMANENT, "bad_request", None, billed=False)
    assert vendor.stats().requests == 0


async def test_a_large_image_arrives_whole(vendor: VendorDouble) -> None:
    url = f"data:image/png;base64,{'QUJD' * 600_000}"
    asked = provider(vendor.base_url, adapter="openai_compatible")
    assert (await ask(asked, [{"type": "image_url", "image_url": {"url": url}}])).text
    assert vendor.requests()[0].body["messages"][0]["content"][0]["image_url"]["url"] == url


@pytest.mark.parametrize(("size", "fits"), [(2**20, True), (2**20 + 1, False)])
async def test_an_answer_is_read_up_to_the_limit_and_no_further(size: int, fits: bool) -> None:
    body = json.dumps(completion()).encode()
    async with answering(200, body[:-1] + b" " * (size - len(body)) + b"}") as url:
        address = address_of("small", made("openai/x"), Endpoint(url, KEY))
        asked = OpenAICompatibleProvider("small", address, concurrency=1, answer_bytes=2**20)
        if fits:
            assert (await ask(asked)).text == "yes"
        else:
            assert Expected.of(await failure(asked)) == Expected(PERMANENT, "oversized", None, billed=True)


async def test_a_compressed_flood_is_bounded_by_what_it_unpacks_to() -> None:
    """Answers are asked for uncompressed; this server does not care."""
    import gzip

    packed = gzip.compress(b" " * 2**24)
    async with answering(200, packed, {"Content-Encoding": "gzip"}) as url:
        address = address_of("small", made("openai/x"), Endpoint(url, KEY))
        error = await failure(OpenAICompatibleProvider("small", address, concurrency=1, answer_bytes=2**20))
    assert Expected.of(error) == Expected(PERMANENT, "oversized", None, billed=True)


async def test_no_more_connections_than_calls_at_once(vendor: VendorDouble) -> None:
    """What waits for a connection until its time is up was never sent."""
    address = address_of("small", made("openai/x"), Endpoint(vendor.base_url, KEY))
    asked = OpenAICompatibleProvider("small", address, concurrency=1)
    hanging = asyncio.create_task(asked.complete(request("[[double:hang]]", within=200)))
    async with asyncio.timeout(60):
        while vendor.stats().in_flight == 0:  # noqa: ASYNC110 - the double is in another thread
            await asyncio.sleep(0.01)
    error = await failure(asked, within=0.2)
    assert Expected.of(error) == Expected(TRANSIENT, "connection_refused", None, billed=False)
    assert vendor.stats().requests == 1
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def test_a_time_limit_is_not_rounded_up() -> None:
    """aiohttp rounds times above five seconds up to the next whole one; a price per second was held for the limit."""
    asked = provider("http://h/v1", adapter="openai_compatible")
    assert isinstance(asked, OpenAICompatibleProvider)
    timeout = asked._timeout(7.3)
    assert (timeout.total, timeout.connect, timeout.ceil_threshold) == (7.3, 3.65, 7.3)
    assert asked._timeout(7.3) is timeout


def test_what_nobody_foresaw_may_have_been_charged() -> None:
    for error in (ValueError("x"), RuntimeError("y"), aiohttp.ClientError("z")):
        found = _failure("small", error)
        assert (type(found), found.kind, found.billed) == (TRANSIENT, "unexplained", True)


def test_the_environments_proxy_is_taken_but_not_to_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert _proxy("https://api.openai.com/v1") is None
    monkeypatch.setenv("https_proxy", "proxy.internal:3128")
    monkeypatch.setenv("no_proxy", "models.internal")
    assert _proxy("https://api.openai.com/v1") == "http://proxy.internal:3128"
    assert _proxy("https://models.internal/v1") is None
    assert _proxy("https://127.0.0.1:1/v1") is None
    assert _proxy("http://vllm:8000/v1") is None


async def test_a_proxy_that_refuses_has_sent_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(407, b"") as proxy:
        monkeypatch.setenv("https_proxy", proxy)
        monkeypatch.setenv("no_proxy", "")
        error = await failure(provider("https://models.invalid/v1", adapter="openai_compatible"))
    assert Expected.of(error) == Expected(TRANSIENT, "connection_refused", None, billed=False)
    assert str(error) == "small: no connection could be made: the proxy answered HTTP 407"


# Whatever a vendor says

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = "choices message content tool_calls usage finish_reason error code type prompt_tokens completion_tokens".split()
SAYINGS = st.recursive(
    JSON,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


def read_or_refuse(read: Callable[[], Any]) -> Any:
    """What is read; ``None`` where that is refused as it should be."""
    try:
        return read()
    except VendorError as error:
        if (error.kind, error.billed) == ("malformed", True) or error.http_status or error.kind == "server_error":
            return None
        raise


@given(JSON | SAYINGS)
def test_any_json_is_an_answer_an_error_or_cannot_be_read(said: Any) -> None:
    reply = read_or_refuse(lambda: replies.read_reply("small", said, {}.get))
    if reply is not None:
        orjson.dumps([reply.text, reply.finish_reason])


@given(SAYINGS, st.sampled_from([400, 408, 429, 500, 502, 503]))
def test_any_refusal_is_billed_by_its_status_alone(said: Any, status: int) -> None:
    content = json.dumps(said).encode()
    error = replies.refused("small", status, replies.read_error(content), {}.get)
    assert (error.http_status, error.billed) == (status, not not_charged(status))
    assert re.fullmatch(r"small: HTTP \d{3}( \([a-z0-9_]{3,40}\)|: [a-z' ]+)?", str(error))


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_unreadable(content: bytes) -> None:
    orjson.dumps(read_or_refuse(lambda: replies.parse("small", content)))


# What is loaded


@pytest.mark.parametrize(
    ("adapter", "loaded", "absent"),
    [
        ("openai_compatible", "aiohttp", ("litellm", "openai", "httpx", "tiktoken")),
        ("litellm", "litellm", ("airflow_ai_provider.core.providers.openai_compatible",)),
    ],
)
def test_a_task_loads_its_own_adapter_and_no_other(
    tmp_path: Path, vendor: VendorDouble, adapter: str, loaded: str, absent: tuple[str, ...]
) -> None:
    (tmp_path / "policy.yaml").write_text(
        json.dumps(policy(deployments={"small": deployment(adapter=adapter)}, masking="off"))
    )
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    code = f"""
import json, logging, sys
from pathlib import Path
from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.settings import Endpoint, Settings
folder = Path({str(tmp_path)!r})
endpoint = lambda _: Endpoint({vendor.base_url!r}, {CONNECTION_KEY!r})
settings = Settings(home=folder / "home", policy_path=folder / "policy.yaml", endpoint=endpoint)
job = MapJob(str(folder / "in.jsonl"), str(folder / "out"), "{{{{ text }}}}", "id", "support", "support")
summary = run_map(job, Caller("dag", "run", "task"), settings, log=logging.getLogger())
print(json.dumps([summary.ok, [name for name in {[loaded, *absent]!r} if name in sys.modules]]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [1, [loaded]]


def test_the_adapter_is_opened_by_the_policys_word(vendor: VendorDouble, tmp_path: Path) -> None:
    settings = House(tmp_path, vendor).settings
    assert isinstance(open_provider("small", made("openai/x", connection="vendor"), settings), OpenAICompatibleProvider)
    with pytest.raises(PolicyError, match=r"deployments\.small: no connection 'nowhere'"):
        open_provider("small", made("openai/x", connection="nowhere"), settings)
