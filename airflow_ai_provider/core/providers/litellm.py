"""Every provider litellm knows, through ``litellm.acompletion``: one HTTP request per call, its retries switched off.

litellm's classes and status codes do not say what happened: a dropped connection and a body it cannot read both
arrive as its own ``InternalServerError`` 500, or as a 422, and either may have been charged. What happened is read
from the chain of causes instead: only an ``httpx.HTTPStatusError`` in it proves that the vendor answered with that
status. What was answered is read from the vendor's own JSON wherever it has OpenAI's form, since litellm turns many
finish reasons into ``stop`` and drops what it does not know; text and tool calls are taken as litellm has read them.

litellm takes seconds and well over 100 MB to import; it is imported when the first such deployment is opened.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from airflow_ai_provider.core.errors import (
    ParameterRefused,
    PolicyError,
    VendorError,
    VendorPermanentError,
    VendorTransientError,
)
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers import replies
from airflow_ai_provider.core.providers.base import MAX_ANSWER_BYTES, ModelReply, ModelRequest
from airflow_ai_provider.core.providers.parameters import (
    ADAPTABLE,
    Adapting,
    Dialect,
    Structure,
    dialect_of,
    strict_rules,
)
from airflow_ai_provider.core.providers.quotas import Headers
from airflow_ai_provider.core.providers.vendors import check_endpoint, signs_in
from airflow_ai_provider.core.settings import Endpoint

_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ClientConnectorError", "ConnectionTimeoutError"})
"""Errors of httpx, and of aiohttp below it, that come before a request leaves."""
_UNREADABLE = frozenset({"JSONDecodeError", "UnicodeDecodeError", "ValidationError", "APIResponseValidationError"})
_MADE_UP = re.compile(r"chatcmpl-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""litellm's own ids, for vendors whose answers have none or another one (``litellm.types.utils.generate_id``)."""


class LitellmProvider:
    """One deployment behind litellm."""

    def __init__(self, name: str, deployment: Deployment, endpoint: Endpoint) -> None:
        """Raises ``PolicyError`` where litellm does not know the provider, or key or ``api_base`` cannot be used."""
        self._litellm = _import_litellm()
        self._name = name
        self._params: dict[str, Any] = {**endpoint.extra, **deployment.params}
        self._fixed: dict[str, Any] = {
            "model": deployment.model,
            "api_base": deployment.api_base or endpoint.api_base,
            "api_key": endpoint.api_key or ("none" if deployment.api_base and not signs_in(endpoint) else None),
            "max_retries": 0,
        }
        self._headers = dict(endpoint.headers)
        self._adapting = Adapting(name, dialect_of(deployment))
        self._structure = Structure(strict_rules(deployment))
        check_endpoint(name, deployment, endpoint)
        self._check_provider()

    def _check_provider(self) -> None:
        model, base = self._fixed["model"], self._fixed["api_base"]
        try:
            self._litellm.get_llm_provider(model=model, api_base=base)
        except self._litellm.BadRequestError:
            raise PolicyError(
                f"deployments.{self._name}: litellm knows no provider of model {model!r}; expected "
                "provider/name, for example openai/gpt-4o-mini, or hosted_vllm/NAME for a server of your own; or write "
                "adapter: openai_compatible, if api_base speaks OpenAI's protocol"
            ) from None

    async def complete(self, request: ModelRequest) -> ModelReply:
        failure: VendorError | None = None
        response, received = None, _Received()
        _receiving.set(received)
        try:
            async with asyncio.timeout(request.timeout):  # litellm's own covers no body that trickles in
                while True:
                    dialect = self._adapting.dialect
                    try:
                        response = await self._litellm.acompletion(**self._arguments(request, dialect))
                        break
                    except self._litellm.UnsupportedParamsError as error:
                        failure = self._failure(error, request, dialect)
                    if not isinstance(failure, ParameterRefused) or failure.http_status is not None:
                        break  # litellm itself refused it otherwise, and nothing was sent
        except TimeoutError:
            failure = replies.timed_out(self._name)
        except Exception as error:  # noqa: BLE001 - litellm raises its own, openai's, httpx's and pydantic's
            failure = self._failure(error, request, dialect)
        try:
            if (reply := self._read(received, response, request)) is not None:
                return reply
        except VendorError as error:
            failure = self._learned(error, json.dumps(received.body()), request, dialect)
        assert failure is not None, "litellm returned an answer, or raised"
        raise failure  # without litellm's as its cause: that knows prompt and key

    def _failure(self, error: Exception, request: ModelRequest, dialect: Dialect) -> VendorError:
        response = _http_response(_chain(error))
        said = str(error) if response is None else _content(response)
        return self._learned(mapped(self._name, error), said, request, dialect)

    def _learned(self, failure: VendorError, said: bytes | str, request: ModelRequest, dialect: Dialect) -> VendorError:
        """What is learned of a failure, where it is about a parameter; else the failure."""
        if failure.kind not in ADAPTABLE or failure.billed:
            return failure
        sent = {*self._params, *request.params, *self._structure.flags(request, dialect)}
        return self._adapting.learn(dialect, failure.http_status, said, sent) or failure

    async def close(self) -> None:
        """Closes the clients of every deployment: litellm keeps them together, by the loop's ``id``.

        They are forgotten as well, or the next loop that gets the same ``id`` would be handed a closed client.
        """
        await self._litellm.close_litellm_async_clients()
        self._litellm.in_memory_llm_clients_cache.flush_cache()

    def _timeout(self, seconds: float) -> Any:
        """Half of the time for the connection: what is not connected by then was certainly not sent."""
        import httpx

        return httpx.Timeout(seconds, connect=seconds / 2)

    def _arguments(self, request: ModelRequest, dialect: Dialect) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            **dialect.kept({**self._params, **request.params}),
            **self._fixed,
            **self._structure.of(request, dialect),
            "messages": list(request.messages),
            dialect.limit_name: request.max_tokens,
            "timeout": self._timeout(request.timeout),
            "extra_headers": {**self._headers, "Idempotency-Key": request.attempt_id},
        }
        if request.tools:
            arguments["tools"] = list(arguments["tools"])
            arguments["_skip_mcp_handler"] = True  # which needs a package more, and calls tools by itself
        return arguments

    def _read(self, received: _Received, response: Any, request: ModelRequest) -> ModelReply | None:
        """The answer in the vendor's JSON or, where that is not OpenAI's, as litellm has read it; ``None`` without one.

        Raises ``VendorError`` where the vendor's JSON is an error, or no answer at all.
        """
        body, messages = received.body(), request.messages
        headers = received.header if response is None else _headers(response)
        if replies.has_openai_form(body):
            return replies.read_reply(self._name, body, headers, messages=messages, read=response)
        if response is None:
            replies.raise_inner(self._name, body, headers)
            if received.is_whole:
                raise replies.unreadable(self._name)
            return None
        reply = replies.read_translated(self._name, response, headers, messages=messages, body=body)
        if reply.vendor_id and _MADE_UP.fullmatch(reply.vendor_id):
            return replace(reply, vendor_id=replies.vendor_id(None, headers))
        return reply


class _Received:
    """The vendor's response to one request, as it came."""

    def __init__(self) -> None:
        self._response: Any = None

    def take(self, response: Any) -> None:
        self._response = response

    @property
    def is_whole(self) -> bool:
        """Whether a response of status 200 to 299 was read to its end."""
        try:
            return (
                self._response is not None and 200 <= self._response.status_code < 300 and bool(self._response.content)
            )
        except RuntimeError:  # not read to its end
            return False

    def body(self) -> Any:
        """The JSON of a whole response; ``None`` where there is none."""
        if not self.is_whole:
            return None
        try:
            return replies.parse("", self._response.content)
        except VendorError:
            return None

    def header(self, name: str) -> str | None:
        value: str | None = self._response.headers.get(name)
        return value


_receiving: ContextVar[_Received | None] = ContextVar("_receiving", default=None)
"""Receives the response to the request that is sent in this context."""


def mapped(name: str, error: Exception) -> VendorError:
    """One of our errors for one of litellm's. The vendor's own text stays out: it may repeat the prompt."""
    links = _chain(error)
    if any(isinstance(link, _Oversized) for link in links):
        return replies.oversized(name, MAX_ANSWER_BYTES)
    if page := next((link for link in links if isinstance(link, _WebPage)), None):
        return replies.wrong_address(name, page.status)
    if (response := _http_response(links)) is not None:
        return _refused(name, links[0], response)
    if _never_sent(links):
        return _not_sent(name, links)
    if any("Timeout" in cls.__name__ for link in links for cls in type(link).__mro__):
        return replies.timed_out(name)
    if any(type(link).__name__ in _UNREADABLE for link in links):
        return replies.unreadable(name)
    if _transport(links):
        return replies.lost(name)
    return VendorTransientError(f"{name}: {type(error).__name__} of litellm", kind="unexplained", billed=True)


def _http_response(links: Sequence[BaseException]) -> Any:
    """The vendor's own response. litellm's exceptions carry responses too, but it makes those up."""
    import httpx

    return next((link.response for link in reversed(links) if isinstance(link, httpx.HTTPStatusError)), None)


def _content(response: Any) -> bytes:
    try:
        return bytes(response.content)
    except RuntimeError:  # not read to its end
        return b""


def _refused(name: str, error: BaseException, response: Any) -> VendorError:
    names = _names([error])
    return replies.refused(
        name,
        response.status_code,
        replies.read_error(_content(response)),
        response.headers.get,
        context="ContextWindowExceededError" in names,
        policy="ContentPolicyViolationError" in names,
    )


def _never_sent(links: Sequence[BaseException]) -> bool:
    """Whether the request certainly never left: no connection was made, or litellm had not come to making one."""
    if transport := _transport(links):
        return all(_names([link]) & _UNSENT for link in transport)
    if type(links[-1]).__module__ == "openai" and type(links[-1]).__name__ == "OpenAIError":
        return True  # no credentials: raised while the client is made
    return len(links) == 1 and type(links[0]).__name__ in {"UnsupportedParamsError", "AuthenticationError"}


def _not_sent(name: str, links: Sequence[BaseException]) -> VendorError:
    names = _names(links)
    if _transport(links):
        if "SSLCertVerificationError" in names:
            return replies.untrusted(name)
        unknown = any(isinstance(link, OSError) and link.errno == socket.EAI_NONAME for link in links)
        return replies.unknown_host(name) if unknown else replies.not_connected(name)
    if "UnsupportedParamsError" in names:
        explanation = f"{name}: the model does not take one of the deployment's params, or no output schema"
        return VendorPermanentError(explanation, kind="unsupported_params")
    return VendorPermanentError(f"{name}: no API key: give the deployment a connection", kind="unauthorized")


def _transport(links: Sequence[BaseException]) -> list[BaseException]:
    """Errors of the layers that send, without those by which httpx only calls one of aiohttp's its own."""
    found = [link for link in links if _package(link) in {"httpx", "httpcore", "aiohttp"}]
    return [link for link in found if _package(link) == "aiohttp" or _package(link.__cause__) != "aiohttp"]


def _package(error: BaseException | None) -> str:
    return type(error).__module__.partition(".")[0]


def _names(links: Sequence[BaseException]) -> set[str]:
    return {cls.__name__ for link in links for cls in type(link).__mro__}


def _chain(error: BaseException) -> list[BaseException]:
    """The error, what caused it, and so on."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _headers(response: Any) -> Headers:
    """The vendor's headers, which litellm hands on with ``llm_provider-`` before them."""
    hidden = getattr(response, "_hidden_params", None)
    headers = hidden.get("additional_headers") if isinstance(hidden, Mapping) else None
    if not isinstance(headers, Mapping):
        return lambda _name: None
    return lambda name: headers.get(f"llm_provider-{name}")


class _Oversized(Exception):
    """An answer is larger than any answer of a model."""


class _WebPage(Exception):
    """A web page where an API should be."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Bounded:
    """A response's stream that ends with ``_Oversized`` where it is too long."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._stream:
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise _Oversized
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _guarded(handle: Callable[..., Any]) -> Callable[..., Any]:
    """litellm's transport with answers bounded, and without what its clients would follow a redirect by."""
    import httpx

    class Stream(_Bounded, httpx.AsyncByteStream):
        pass

    async def handle_async_request(self: Any, request: Any) -> Any:
        response = await handle(self, request)
        if 300 <= response.status_code < 400:
            response.headers[replies.REDIRECTED_TO] = response.headers.pop("location", "")
        if replies.is_page(response.status_code, response.headers.get("content-type")):
            await response.aclose()
            raise _WebPage(response.status_code)
        response.stream = Stream(response.stream)
        if (received := _receiving.get()) is not None:
            received.take(response)
        return response

    handle_async_request.guards = True  # type: ignore[attr-defined]
    return handle_async_request


async def _not_again(*_args: Any, **_named: Any) -> Any:
    """In place of the second request that litellm sends after a lost connection: the first may have been charged."""
    error = sys.exception()
    assert error is not None, "litellm calls this while it handles the lost connection"
    raise error


def _import_litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm
    import openai.resources.chat.completions  # noqa: F401 - half a second that the first call would pay within its time
    from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    for name in ("LiteLLM", "openai"):  # below this level they log prompts
        logging.getLogger(name).setLevel(logging.WARNING)
    AsyncHTTPHandler.single_connection_post_request = _not_again
    send = LiteLLMAiohttpTransport.handle_async_request
    if not hasattr(send, "guards"):
        LiteLLMAiohttpTransport.handle_async_request = _guarded(send)
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    return litellm
