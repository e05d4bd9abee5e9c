"""Every provider litellm knows, through ``litellm.acompletion``: one HTTP request per call, its retries switched off.

litellm's classes and status codes do not say what happened: a dropped connection and a body it cannot read both
arrive as its own ``InternalServerError`` 500, or as a 422, and either may have been charged. What happened is read
from the chain of causes instead: only an ``httpx.HTTPStatusError`` in it proves that the vendor answered with that
status.

litellm takes seconds and well over 100 MB to import; it is imported when the first such deployment is opened.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from airflow_ai_provider.errors import PolicyError, VendorError, VendorPermanentError, VendorTransientError
from airflow_ai_provider.gateway.providers.base import ModelReply, ModelRequest, http_error
from airflow_ai_provider.gateway.settings import Endpoint
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.policy import RESERVED_PARAMS, Deployment

_CODE = re.compile(r"[a-z][a-z0-9_]{2,39}")
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_QUOTA_MESSAGE = "credit balance is too low"
"""Anthropic's, which has no code of its own. Gemini words its ordinary rate limit as OpenAI words a spent quota."""
_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ClientConnectorError", "ConnectionTimeoutError"})
"""Errors of httpx, and of aiohttp below it, that come before a request leaves."""
_UNREADABLE = frozenset({"JSONDecodeError", "ValidationError", "APIResponseValidationError"})
_MOST_RETRY_AFTER = 3600.0
_MOST_TOKENS = 10**9
_MADE_UP = re.compile(r"chatcmpl-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""litellm's own ids, for vendors whose answers have none or another one (``litellm.types.utils.generate_id``)."""
_REQUEST_ID_HEADERS = ("request-id", "x-request-id", "x-amzn-requestid")
"""Anthropic's, OpenAI's and Bedrock's; litellm hands headers on with ``llm_provider-`` before them."""


class LitellmProvider:
    """One deployment behind litellm."""

    def __init__(self, name: str, deployment: Deployment, endpoint: Endpoint) -> None:
        """Raises ``PolicyError`` where litellm does not know the provider, or key or ``api_base`` cannot be used."""
        self._litellm = _import_litellm()
        self._name = name
        self._fixed: dict[str, Any] = {
            **_allowed(name, endpoint.extra),
            **deployment.params,
            "model": deployment.model,
            "api_base": deployment.api_base or endpoint.api_base,
            "api_key": endpoint.api_key or ("none" if deployment.api_base else None),
            "max_retries": 0,
        }
        self._headers = dict(endpoint.headers)
        self._check()

    def _check(self) -> None:
        key, base, model = (self._fixed[name] for name in ("api_key", "api_base", "model"))
        if key is not None and (not key.isprintable() or key != key.strip()):
            raise PolicyError(
                f"deployments.{self._name}: the API key of its connection begins or ends with a space, or has a line "
                "break in it; store it again without"
            )
        if base is not None and not base.startswith(("http://", "https://")):
            raise PolicyError(f"deployments.{self._name}: api_base {base!r}: expected a URL such as https://host/v1")
        try:
            self._litellm.get_llm_provider(model=model, api_base=base)
        except self._litellm.BadRequestError:
            raise PolicyError(
                f"deployments.{self._name}: litellm knows no provider of model {model!r}; expected "
                "provider/name, for example openai/gpt-4o-mini, or hosted_vllm/NAME for a server of your own"
            ) from None

    async def complete(self, request: ModelRequest) -> ModelReply:
        try:
            async with asyncio.timeout(request.timeout):  # litellm's own covers no body that trickles in
                response = await self._litellm.acompletion(**self._arguments(request))
        except TimeoutError:
            raise _timed_out(self._name) from None
        except Exception as error:  # noqa: BLE001 - litellm raises its own, openai's, httpx's and pydantic's
            raise mapped(self._name, error) from None
        return self._reply(response)

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

    def _arguments(self, request: ModelRequest) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            **self._fixed,
            "messages": list(request.messages),
            "max_tokens": request.max_tokens,
            "timeout": self._timeout(request.timeout),
            "extra_headers": {**self._headers, "Idempotency-Key": request.attempt_id},
        }
        if request.output_schema is not None:
            arguments["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(request.output_schema)},
            }
        return arguments

    def _reply(self, response: Any) -> ModelReply:
        try:
            choice = response.choices[0]
            text = choice.message.content or ""
            reason = choice.finish_reason or "stop"
        except (AttributeError, IndexError, TypeError):
            raise _unreadable(self._name) from None
        return ModelReply(_writable(text), _usage(getattr(response, "usage", None)), reason, _vendor_id(response))


def mapped(name: str, error: Exception) -> VendorError:
    """One of our errors for one of litellm's. The vendor's own text stays out: it may repeat the prompt."""
    links = _chain(error)
    if (response := _http_response(links)) is not None:
        return _refused(name, links[0], response)
    if _never_sent(links):
        return _not_sent(name, links)
    if any("Timeout" in cls.__name__ for link in links for cls in type(link).__mro__):
        return _timed_out(name)
    if any(type(link).__name__ in _UNREADABLE for link in links):
        return _unreadable(name)
    if _transport(links):
        return VendorTransientError(f"{name}: connection lost", kind="connection_lost", billed=True)
    return VendorTransientError(f"{name}: {type(error).__name__} of litellm", kind="unexplained", billed=True)


def _http_response(links: Sequence[BaseException]) -> Any:
    """The vendor's own response. litellm's exceptions carry responses too, but it makes those up."""
    import httpx

    return next((link.response for link in reversed(links) if isinstance(link, httpx.HTTPStatusError)), None)


def _refused(name: str, error: BaseException, response: Any) -> VendorError:
    status, names = response.status_code, _names([error])
    code, message = _said(response)
    place = f"{name}: HTTP {status}"
    if code in _QUOTA_CODES or _QUOTA_MESSAGE in message:
        return VendorPermanentError(f"{place}: quota exhausted", kind="quota_exhausted", http_status=status)
    if "ContextWindowExceededError" in names:
        explanation = f"{place}: the row is larger than the model's context"
        return VendorPermanentError(explanation, kind="context_window", http_status=status)
    if "ContentPolicyViolationError" in names:
        return VendorPermanentError(f"{place}: refused by content policy", kind="content_policy", http_status=status)
    detail = code if code and _CODE.fullmatch(code) else ""
    return http_error(name, status, detail=detail, retry_after=_retry_after(response.headers))


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
        return VendorTransientError(f"{name}: no connection could be made", kind="connection_refused")
    if "UnsupportedParamsError" in names:
        explanation = f"{name}: the model does not take one of the deployment's params, or no output schema"
        return VendorPermanentError(explanation, kind="unsupported_params")
    return VendorPermanentError(f"{name}: no API key: give the deployment a connection", kind="unauthorized")


def _timed_out(name: str) -> VendorTransientError:
    return VendorTransientError(f"{name}: no answer in time", kind="timeout", billed=True)


def _unreadable(name: str) -> VendorTransientError:
    return VendorTransientError(f"{name}: the answer cannot be read", kind="malformed", billed=True)


def _transport(links: Sequence[BaseException]) -> list[BaseException]:
    return [link for link in links if type(link).__module__.partition(".")[0] in {"httpx", "httpcore", "aiohttp"}]


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


def _said(response: Any) -> tuple[str, str]:
    """Code and message of the vendor's error body, empty where it has none; neither may leave this module as it is."""
    try:
        body = orjson.loads(response.content)
    except (ValueError, RuntimeError):  # not JSON, or not read to its end
        return "", ""
    inner = body.get("error", body) if isinstance(body, Mapping) else {}
    if not isinstance(inner, Mapping):
        return "", str(inner).lower()
    code = inner.get("code") if isinstance(inner.get("code"), str) else inner.get("type")
    return str(code or ""), str(inner.get("message") or "").lower()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the vendor asks to wait: ``retry-after-ms``, or ``retry-after`` in seconds or as a date (RFC 9110)."""
    seconds = _number(headers.get("retry-after-ms"))
    seconds = seconds / 1000 if seconds is not None else _number(headers.get("retry-after"))
    if seconds is None and (date := headers.get("retry-after")):
        try:
            seconds = (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return None if seconds is None else min(max(seconds, 0.0), _MOST_RETRY_AFTER)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _writable(text: str) -> str:
    """The text as UTF-8 can hold it: JSON lets a vendor send half of a surrogate pair, as when it cuts an emoji."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _usage(reported: Any) -> Usage | None:
    """The vendor's figures; ``None`` where there are none (litellm then fills in zeros) or none that can be meant.

    Of every provider, litellm's ``prompt_tokens`` holds what was read from the prompt cache and what was written to
    it: OpenAI's and Gemini's own figures do, and for Anthropic and Bedrock it adds both
    (``AnthropicConfig.calculate_usage``, ``AmazonConverseConfig.transform_usage``; ``generic_cost_per_token`` relies
    on it). Where the two parts are more than the whole all the same, as behind a proxy that passes Anthropic's
    figures on as they are, they are added here.
    """
    prompt = getattr(reported, "prompt_tokens", None)
    completion = getattr(reported, "completion_tokens", None)
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt <= 0 or completion < 0:
        return None
    details = getattr(reported, "prompt_tokens_details", None)
    cached = _count(details, "cached_tokens")
    write = _count(details, "cache_write_tokens") or _count(details, "cache_creation_tokens")
    if cached + write > prompt:
        prompt += cached + write
    if max(prompt, completion) > _MOST_TOKENS:
        return None
    return Usage(prompt, completion, cached, write, _kept_an_hour(details, write))


def _kept_an_hour(details: Any, write: int) -> int:
    """Of the tokens written to the cache, those that may be charged as kept for an hour: all but what was said to be
    kept for five minutes. Who offers only one kind has one price for both."""
    split = getattr(details, "cache_creation_token_details", None)
    return max(0, write - _count(split, "ephemeral_5m_input_tokens"))


def _count(figures: Any, name: str) -> int:
    value = getattr(figures, name, None)
    return value if isinstance(value, int) and value > 0 else 0


def _vendor_id(response: Any) -> str | None:
    """The vendor's name of the answer: its ``id`` or, where litellm made that up, the request id of its headers."""
    name = getattr(response, "id", None)
    if isinstance(name, str) and not _MADE_UP.fullmatch(name):
        return _storable(name)
    hidden = getattr(response, "_hidden_params", None)
    headers = hidden.get("additional_headers") if isinstance(hidden, Mapping) else None
    if not isinstance(headers, Mapping):
        return None
    return next(
        (found for key in _REQUEST_ID_HEADERS if (found := _storable(headers.get(f"llm_provider-{key}")))), None
    )


def _storable(name: object) -> str | None:
    return name if isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable() else None


def _allowed(name: str, extra: Mapping[str, Any]) -> Mapping[str, Any]:
    if bad := sorted(RESERVED_PARAMS & extra.keys()):
        raise PolicyError(f"deployments.{name}: its connection's extra sets {', '.join(bad)}: remove it there")
    return extra


async def _not_again(*_args: Any, **_named: Any) -> Any:
    """In place of the second request that litellm sends after a lost connection: the first may have been charged."""
    error = sys.exception()
    assert error is not None, "litellm calls this while it handles the lost connection"
    raise error


def _import_litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm
    import openai.resources.chat.completions  # noqa: F401 - half a second that the first call would pay within its time
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    for name in ("LiteLLM", "openai"):  # below this level they log prompts
        logging.getLogger(name).setLevel(logging.WARNING)
    AsyncHTTPHandler.single_connection_post_request = _not_again
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    return litellm
