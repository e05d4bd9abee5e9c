"""Every provider litellm knows, through ``litellm.acompletion``: one HTTP request per call, its retries switched off.

litellm takes seconds and well over 100 MB to import; it is imported when the first such deployment is opened.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any

from airflow_ai_provider.errors import VendorError, VendorPermanentError, VendorTransientError
from airflow_ai_provider.gateway.providers.base import ModelReply, ModelRequest
from airflow_ai_provider.gateway.settings import Endpoint
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.policy import Deployment

_CODE = re.compile(r"[a-z][a-z0-9_]{2,59}")
_UNBILLED_5XX = frozenset({500, 503, 529})
"""The vendor says itself that it failed. A gateway's 502 or 504 may hide an answer that was made and charged."""
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "credit_balance_too_low"})


class LitellmProvider:
    """One deployment behind litellm."""

    def __init__(self, name: str, deployment: Deployment, endpoint: Endpoint) -> None:
        self._litellm = _import_litellm()
        self._name = name
        self._fixed: dict[str, Any] = {
            **endpoint.extra,
            **deployment.params,
            "model": deployment.model,
            "api_base": deployment.api_base or endpoint.api_base,
            "api_key": endpoint.api_key or ("none" if deployment.api_base else None),
            "max_retries": 0,
        }
        self._headers = dict(endpoint.headers)

    async def complete(self, request: ModelRequest) -> ModelReply:
        arguments: dict[str, Any] = {
            **self._fixed,
            "messages": list(request.messages),
            "max_tokens": request.max_tokens,
            "timeout": request.timeout,
            "extra_headers": {**self._headers, "Idempotency-Key": request.attempt_id},
        }
        if request.output_schema is not None:
            arguments["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(request.output_schema)},
            }
        try:
            async with asyncio.timeout(request.timeout + 1):  # litellm's own time-out does not cover a slow body
                response = await self._litellm.acompletion(**arguments)
        except TimeoutError:
            raise VendorTransientError(f"{self._name}: no answer in time", kind="timeout", billed=True) from None
        except Exception as error:  # noqa: BLE001 - litellm raises its own, openai's, httpx's and pydantic's
            raise self._mapped(error) from None
        return self._reply(response)

    async def close(self) -> None:
        await self._litellm.close_litellm_async_clients()

    def _reply(self, response: Any) -> ModelReply:
        try:
            choice = response.choices[0]
            text = choice.message.content or ""
            reason = choice.finish_reason or "stop"
        except (AttributeError, IndexError, TypeError):
            raise VendorTransientError(f"{self._name}: malformed answer", kind="malformed", billed=True) from None
        return ModelReply(text, _usage(getattr(response, "usage", None)), reason)

    def _mapped(self, error: Exception) -> VendorError:
        """One of our errors for one of litellm's. The vendor's own text stays out: it may repeat the prompt."""
        status = getattr(error, "status_code", None)
        code = _code(error)
        names = {cls.__name__ for cls in type(error).__mro__}
        status = status if isinstance(status, int) else None
        place = f"{self._name}: {'HTTP ' + str(status) if status else type(error).__name__}"
        after = _retry_after(error)
        if names & {"Timeout", "APITimeoutError"} or status == 408:
            return VendorTransientError(f"{self._name}: no answer in time", kind="timeout", billed=True)
        if code in _QUOTA_CODES:
            return VendorPermanentError(f"{place}: quota exhausted", kind="quota_exhausted", http_status=status)
        if "ContextWindowExceededError" in names:
            return VendorPermanentError(
                f"{place}: the row is larger than the model's context", kind="context_window", http_status=status
            )
        if "ContentPolicyViolationError" in names:
            return VendorPermanentError(
                f"{place}: refused by content policy", kind="content_policy", http_status=status
            )
        if status == 429:
            return VendorTransientError(
                f"{place}: rate limited", kind="rate_limited", http_status=status, retry_after=after
            )
        if "APIConnectionError" in names:
            return self._connection_error(error)
        if status in _UNBILLED_5XX and "APIError" in names | {"APIError"} and not _malformed(error):
            return VendorTransientError(
                f"{place}: the vendor failed", kind="server_error", http_status=status, retry_after=after
            )
        if status is None or status == 409 or status >= 500:
            return VendorTransientError(f"{place}: failed", kind="server_error", http_status=status, billed=True)
        detail = f" ({code})" if code else ""
        return VendorPermanentError(f"{place}: refused{detail}", kind=code or f"http_{status}", http_status=status)

    def _connection_error(self, error: Exception) -> VendorTransientError:
        """A connection that was never made cost nothing; one that broke may have."""
        chain = _chain(error)
        unsent = {"ConnectError", "ClientConnectorError", "ConnectTimeout", "ConnectionRefusedError", "gaierror"}
        billed = not any(type(link).__name__ in unsent for link in chain)
        kind = "connection_lost" if billed else "connection_refused"
        return VendorTransientError(f"{self._name}: {kind.replace('_', ' ')}", kind=kind, billed=billed)


def _usage(reported: Any) -> Usage | None:
    """The vendor's figure; ``None`` where there is none, or litellm made one up from nothing."""
    prompt = getattr(reported, "prompt_tokens", None)
    completion = getattr(reported, "completion_tokens", None)
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt <= 0:
        return None
    details = getattr(reported, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    return Usage(prompt, completion, min(int(cached), prompt))


def _code(error: Exception) -> str | None:
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, Mapping) else {}
    found = getattr(error, "code", None) or (inner.get("code") if isinstance(inner, Mapping) else None)
    return found if isinstance(found, str) and _CODE.fullmatch(found) else None


def _retry_after(error: Exception) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None)
    headers = headers or getattr(error, "litellm_response_headers", None) or {}
    try:
        seconds = float(str(headers.get("retry-after")))
    except (TypeError, ValueError, AttributeError):
        return None
    return min(max(seconds, 0.0), 3600.0)


def _malformed(error: Exception) -> bool:
    """litellm reports a body it cannot parse as a 500 of its own: then the vendor did answer, and charged."""
    names = {type(link).__name__ for link in _chain(error)}
    return bool(names & {"JSONDecodeError", "ValidationError", "APIResponseValidationError"})


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _import_litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    return litellm
