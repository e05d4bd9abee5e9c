"""Field types of the policy, and the request parameters that it may set.

Which parameters of a request are known to cost nothing beyond its hold, and what becomes of all others.

A hold covers the tokens of the request, ``max_tokens`` of answer, and a fee per request. A parameter passes where it is
known to stay within that. Everything else is refused, or declared by the deployment with a surcharge per request, which
the hold covers and the ledger charges. What would send a row elsewhere, or multiply its answer, cannot be declared.

What the sections of a policy are made of: durations, amounts, words, parameters, and how each is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

RESERVED_PARAMS = frozenset(
    "model messages api_key api_base base_url max_tokens max_completion_tokens max_output_tokens n best_of stream "
    "stream_options max_retries num_retries timeout request_timeout response_format extra_headers extra_body "
    "extra_query headers tools tool_choice functions function_call fallbacks models route transforms deployment_id "
    "context_window_fallback_dict context_window_fallbacks model_list mock_response mock_tool_calls service_tier "
    "speed ssl_verify drop_params additional_drop_params allowed_openai_params custom_llm_provider caching "
    "cache preset prompt_id guardrails callbacks success_callback failure_callback litellm_params input_cost_per_token "
    "output_cost_per_token max_new_tokens max_tokens_to_sample max_gen_len max_length max_token_count n_predict "
    "num_predict candidate_count num_return_sequences".split()
)
"""What the gateway sets itself, what sends a row elsewhere, and what multiplies an answer or its price."""
_INSTEAD: Mapping[str, str] = {
    "say max_tokens of the route": "max_tokens max_completion_tokens max_output_tokens max_new_tokens "
    "max_tokens_to_sample max_gen_len max_length max_token_count n_predict num_predict",
    "give the operator an output_schema": "response_format",
    "give the operator tools and tool_choice": "tools tool_choice functions function_call",
    "say timeout of the deployment": "timeout request_timeout",
    "say retry of the route": "max_retries num_retries",
    "write its fields into params, each by itself": "extra_body",
    "write headers into the extra of the deployment's connection": "headers extra_headers",
    "name a deployment for each model, and list them in the tiers of a route": "model models model_list fallbacks "
    "route context_window_fallback_dict context_window_fallbacks",
    "say api_base of the deployment": "api_base base_url",
    "give the deployment a connection": "api_key",
    "say reuse of the route": "cache caching",
}
"""What to do instead of setting reserved parameters."""
_FREE = frozenset(
    "temperature top_p top_k top_a min_p typical_p frequency_penalty presence_penalty repetition_penalty "
    "length_penalty stop stop_sequences stop_token_ids bad_words include_stop_str_in_output ignore_eos min_tokens "
    "seed random_seed logit_bias logprobs top_logprobs prompt_logprobs user safety_identifier end_user_id metadata "
    "store parallel_tool_calls reasoning_effort reasoning reasoning_format include_reasoning verbosity thinking "
    "thinking_level safety_settings safe_prompt prompt_cache_key prompt_cache_retention cache_salt "
    "cache_control_injection_points guided_json guided_regex guided_choice guided_grammar structured_outputs grammar "
    "skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens add_generation_prompt "
    "continue_final_message add_special_tokens echo priority keep_alive num_ctx repeat_penalty repeat_last_n mirostat "
    "mirostat_eta mirostat_tau tfs_z cache_prompt inference_geo".split()
)
"""Sampling, form and bookkeeping: tokens of an answer stay below ``max_tokens``, and thinking is among them."""
_CONNECTING = frozenset(
    "api_version azure_ad_token tenant_id client_id client_secret azure_scope azure_username azure_password "
    "organization project aws_access_key_id aws_secret_access_key aws_session_token aws_region_name aws_profile_name "
    "aws_role_name aws_session_name aws_web_identity_token aws_sts_endpoint aws_external_id "
    "aws_bedrock_runtime_endpoint vertex_project vertex_location vertex_credentials region_name project_id space_id "
    "watsonx_region_name token username databricks_host".split()
)
"""How a place is reached and who is billed there: arguments of an adapter and no part of the request."""
_THINKING = frozenset("enable_thinking thinking thinking_budget reasoning reasoning_effort".split())
_NOT_FREE_AT = {"dashscope": _THINKING, "volcengine": _THINKING, "litellm_proxy": frozenset({"metadata"})}
"""By provider: what its ``max_tokens`` does not count, and what may send a row to another model there."""
_SHORT = 32
"""Characters of a word in the arguments of a chat template: longer text would be input that is not counted."""


def is_off(value: Any) -> bool:
    """Whether a value switches a thing off; an empty mapping switches it on, as ``web_search_options`` does."""
    return value in (None, False, 0, "none", "off", "disabled", [], {"type": "disabled"})


def _few_words(value: Any) -> bool:
    """Whether a value is switches and single words."""
    if isinstance(value, Mapping):
        return len(value) <= 8 and all(_few_words(inner) for inner in value.values())
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _SHORT)


_FREE_VALUES: Mapping[str, Callable[[Any], bool]] = {
    "modalities": lambda value: value == ["text"],
    "n": lambda value: value == 1,
    "best_of": lambda value: value == 1,
    "service_tier": lambda value: value in ("default", "standard", "standard_only"),
    "speed": lambda value: value == "standard",
    "tool_choice": lambda value: value == "none",
    "chat_template_kwargs": _few_words,
}
"""Parameters that some values of make free."""


def _folded(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


_RESERVED_FOLDED = frozenset(map(_folded, RESERVED_PARAMS))
_REMEDIES = {_folded(name): remedy for remedy, names in _INSTEAD.items() for name in names.split()}


def is_reserved(name: str) -> bool:
    """Whether a parameter can neither be set nor declared, in whatever spelling: ``maxTokens`` is ``max_tokens``."""
    return _folded(name) in _RESERVED_FOLDED


def is_free(name: str, value: Any, provider: str) -> bool:
    """Whether a parameter is known to cost nothing beyond the hold at a provider."""
    if check := _FREE_VALUES.get(name):
        return value is None or check(value)
    if is_reserved(name):
        return False
    if name in _NOT_FREE_AT.get(provider, ()):
        return is_off(value)
    return name in _FREE or name in _CONNECTING or is_off(value)


def reserved(params: Mapping[str, Any]) -> list[str]:
    """Names that can neither be set nor declared, in order."""
    return sorted(name for name, value in params.items() if is_reserved(name) and not is_free(name, value, ""))


def remedies(names: Iterable[str]) -> str:
    """What to do instead of setting each of some reserved parameters."""
    return "; ".join(f"{name}: {_REMEDIES.get(_folded(name), 'take it out')}" for name in names)


def undeclared(params: Mapping[str, Any], provider: str, declared: Iterable[str]) -> list[str]:
    """Names that may cost beyond the hold, and for which no surcharge is ``declared``, in order."""
    return sorted(name for name in params.keys() - {*declared} if not is_free(name, params[name], provider))


def advice(names: Iterable[str], deployment: str) -> str:
    """What is wrong with undeclared parameters of a deployment, and what to do."""
    listed = list(names)
    charges = ", ".join(f"{name}: 0.01" for name in listed)
    return (
        f"{', '.join(listed)} may cost more than the hold of a call; take it out, or declare under "
        f"deployments.{deployment} the most USD that a request with it costs on top: surcharges: {{{charges}}}, "
        "0 if nothing"
    )


Tier = Literal["simple", "medium", "complex"]
TIERS: tuple[Tier, ...] = ("simple", "medium", "complex")
Language = Literal["zh", "ja", "ko", "el", "he", "th", "latin", "cyrillic", "arabic", "devanagari"]
"""What a text's letters tell: a language where it alone uses its script, else the script."""
_SHARED_SCRIPTS = {
    "latin": "en de fr es it pt nl pl cs sk hu ro sv da no fi tr vi id ms tl sw",
    "cyrillic": "ru uk be bg sr mk kk mn",
    "arabic": "ar fa ur ps",
    "devanagari": "hi mr ne",
}
_SCRIPT_OF = {code: script for script, codes in _SHARED_SCRIPTS.items() for code in codes.split()}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """Turn ``90``, ``"90s"``, ``"15m"``, ``"1h"`` or ``"7d"`` into seconds."""
    if isinstance(value, str) and value[-1:] in _UNITS and value[:-1].isdigit():
        return int(value[:-1]) * _UNITS[value[-1]]
    return value


def _decimal(value: Any) -> Any:
    """A YAML float is read by its shortest text, so that 0.1 means one tenth."""
    return Decimal(repr(value)) if isinstance(value, float) else value


def listed(value: Any) -> Any:
    """One name may stand without the brackets of a list."""
    return (value,) if isinstance(value, str) else value


def _no_reserved_params(params: dict[str, Any]) -> dict[str, Any]:
    if bad := reserved(params):
        raise ValueError(
            f"{', '.join(bad)} cannot be set here: the gateway sets it, or it would cost unforeseen ({remedies(bad)})"
        )
    return params


def as_word(value: Any) -> str:
    """A value of a row or of the policy as it is compared: as text, in lower case, without blanks around it."""
    return str(value).strip().lower()


def as_words(value: Any) -> Any:
    """Plain values as words; one needs no list."""
    values = value if isinstance(value, list | tuple) else [value]
    if any(one is None or isinstance(one, list | dict) for one in values):
        raise ValueError("expected a value, or a list of values")
    return tuple(map(as_word, values))


def tellable(language: Any) -> Any:
    if script := _SCRIPT_OF.get(language) if isinstance(language, str) else None:
        raise ValueError(f"letters do not tell {language!r} from other languages of its script; write {script}")
    return language


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(as_words), Field(min_length=1)]
Params = Annotated[dict[str, Any], AfterValidator(_no_reserved_params)]
Duration = Annotated[int, BeforeValidator(_seconds), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=3600)]
Usd = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, max_digits=19, decimal_places=9)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
