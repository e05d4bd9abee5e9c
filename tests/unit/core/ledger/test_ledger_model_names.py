"""A ledger's and an invoice's names of one model meet; names of two models do not."""

from __future__ import annotations

import pytest

from airflow_ai_provider.core.ledger.model_names import ModelNames, same_model


@pytest.mark.parametrize(
    ("ledger", "invoice"),
    [
        ("openai/gpt-4o-mini", "gpt-4o-mini"),
        ("openai/gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
        ("openai/gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-4o-mini", "openai/GPT-4o-mini"),
        ("openai/gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
        ("openai/gpt-4.1", "gpt-4.1-2025-04-14"),
        ("anthropic/claude-haiku-4-5", "claude-haiku-4-5-20251001"),
        ("anthropic/claude-haiku-4-5-20251001", "Claude Haiku 4.5"),
        ("anthropic/claude-3-7-sonnet-latest", "Claude Sonnet 3.7"),
        ("vertex_ai/claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("openrouter/qwen/qwen3-32b", "qwen3-32b"),
    ],
)
def test_one_model(ledger: str, invoice: str) -> None:
    names = ModelNames([ledger])
    assert names.of_invoice(invoice) == names.of_ledger(ledger)
    assert names.knows(invoice)


@pytest.mark.parametrize(
    ("ledger", "invoice"),
    [
        ("openai/gpt-4o", "gpt-4o-mini"),
        ("openai/gpt-4o-2024-08-06", "gpt-4o-2024-11-20"),
        ("openai/gpt-4o-mini", "gpt-4o-mini-audio-preview-2024-12-17"),
        ("openai/gpt-4", "gpt-4.1"),
        ("openai/o1", "o1-9999"),
    ],
)
def test_two_models(ledger: str, invoice: str) -> None:
    names = ModelNames([ledger])
    assert names.of_invoice(invoice) != names.of_ledger(ledger)
    assert not names.knows(invoice)


def test_the_exact_name_comes_first_and_an_undated_one_of_two_snapshots_is_neither() -> None:
    names = ModelNames(["openai/gpt-4o-2024-08-06", "openai/gpt-4o-2024-11-20", "openai/gpt-4o-mini"])
    assert names.of_invoice("gpt-4o-2024-11-20") == "gpt-4o-2024-11-20"
    assert names.of_invoice("gpt-4o") == "gpt-4o"
    assert not names.knows("gpt-4o")


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("openai/gpt-4o", "gpt-4o-2024-08-06", True),
        ("openai/gpt-4", "gpt-4-0613", True),
        ("openai/gpt-3.5-turbo", "gpt-35-turbo", True),
        ("openai/ft:gpt-4o-mini-2024-07-18:acme::x1", "ft:gpt-4o-mini-2024-07-18:acme::x1", True),
        ("openrouter/openai/gpt-4o", "openai/gpt-4o", True),
        ("openrouter/deepseek/deepseek-r1:free", "deepseek/deepseek-r1", True),
        ("bedrock/us.anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3.5-sonnet", True),
        ("mistral/mistral-small", "mistral-small-2503", True),
        ("gemini/gemini-2.5-flash", "models/gemini-2.5-flash-preview-05-20", True),
        ("ollama/llama3", "llama3:latest", True),
        ("xai/grok-4", "grok-4-0709", True),
        ("openai/gpt-4o", "gpt-4o-mini", False),
        ("openai/gpt-5", "gpt-5-mini-2025-08-07", False),
        ("openai/gpt-4o", "gpt-4", False),
        ("openai/gpt-4o", "claude-haiku-4-5", False),
        ("gemini/gemini-2.5-flash", "gemini-2.5-pro", False),
    ],
)
def test_an_answers_model_is_the_one_asked_for_or_another(asked: str, served: str, same: bool) -> None:
    assert same_model(asked, served) is same
