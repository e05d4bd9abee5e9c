"""The offline model: the same answer to the same prompt, taken from the context, labelled as what it is."""

from __future__ import annotations

from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.providers.base import ModelReply, ModelRequest
from airflow_ai_provider.core.providers.offline import LABEL, ExtractiveProvider

CARDS = """## [1] Your card PIN > A blocked PIN
The PIN is blocked after three wrong attempts in a row. To unblock the PIN, choose PIN services at a cash machine.
Online payments keep working while the PIN is blocked.

## [2] Virtual cards
Virtual cards and replacement cards are free, and express delivery of a card costs £8. A card arrives in 5.5 days.

## [3] Privacy
We keep records of calls for six years. Our branches open at nine."""
KARTEN = """## [1] 银行卡密码
连续三次输错密码后，密码会被锁定。要解锁，请把卡插入取款机，选择“密码服务”。密码被锁期间，网上付款仍可正常使用。

## [2] 补卡
补卡免费，加急寄送收费 8 英镑。新卡三个工作日内寄到。"""
NOTHING = "No passage of the context answers this."


async def ask(prompt: str, *, schema: dict[str, Any] | None = None, max_tokens: int = 400) -> ModelReply:
    request = ModelRequest("a", [{"role": "user", "content": prompt}], max_tokens, schema, 10)
    return await ExtractiveProvider().complete(request)


def tagged(context: str, question: str) -> str:
    return f"Answer politely.\n<context>\n{context}\n</context>\n<question>\n{question}\n</question>\n"


async def answer(context: str, question: str) -> str:
    return (await ask(tagged(context, question))).text


async def test_the_sentences_that_answer_are_given_back_with_a_label_and_the_question() -> None:
    text = await answer(CARDS, "How do I unblock my PIN?")
    assert text.startswith(f"{LABEL} “How do I unblock my PIN?” ")
    assert "choose PIN services at a cash machine." in text
    assert "Virtual" not in text


async def test_figures_stay_whole() -> None:
    assert "£8. A card arrives in 5.5 days." in await answer(CARDS, "When does a card arrive, in how many days?") + (
        await answer(CARDS, "What does express delivery of a card cost, and when does it arrive?")
    )


async def test_chinese_is_answered_in_chinese() -> None:
    text = await answer(KARTEN, "密码被锁定了，怎么解锁？")
    assert text.startswith(f"{LABEL} “密码被锁定了，怎么解锁？” ")
    assert "密码会被锁定。" in text
    assert "补卡" not in text


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of Australia?",
        "Can you write me a poem about the sea?",
        "Which programming language should I learn first?",
        "My cat does not eat any more, what should I do?",
        "Do you sell travel insurance for dogs?",
    ],
)
async def test_a_question_that_the_context_does_not_answer_is_told_so(question: str) -> None:
    assert await answer(CARDS, question) == f"{LABEL} “{question}” {NOTHING}"


@pytest.mark.parametrize(
    "question", ["明天上海天气怎么样？", "附近有什么好吃的餐厅？", "请帮我写一首关于大海的诗", "你们卖医疗保险吗？"]
)
async def test_a_chinese_question_that_the_context_does_not_answer_is_told_so(question: str) -> None:
    assert (await answer(KARTEN, question)).endswith(NOTHING)


@pytest.mark.parametrize("context", ["", "\n\n", "## A heading and nothing below it"])
async def test_without_context_it_says_so(context: str) -> None:
    assert (await answer(context, "How do I unblock my PIN?")).endswith(NOTHING)


@pytest.mark.parametrize("question", ["", "?", "Hello, please help!", "你好，请问"])
async def test_a_question_that_asks_nothing_gets_no_passage(question: str) -> None:
    assert (await answer(CARDS, question)).endswith(NOTHING)


async def test_a_long_mail_is_answered_by_what_it_asks_about() -> None:
    mail = "Dear team, I have been a customer for many years and was always content. " * 3
    text = await answer(
        CARDS, f"{mail} Yesterday I typed three wrong attempts and now the PIN is blocked, how to unblock?"
    )
    assert "blocked after three wrong attempts" in text


async def test_without_tags_the_last_paragraph_is_the_question() -> None:
    text = (await ask(f"{CARDS}\n\nHow do I unblock my PIN?")).text
    assert "choose PIN services at a cash machine." in text


async def test_a_prompt_of_one_paragraph_is_a_question_without_context() -> None:
    assert (await ask("How do I unblock my PIN?")).text == f"{LABEL} “How do I unblock my PIN?” {NOTHING}"


async def test_the_answer_is_no_longer_than_allowed() -> None:
    reply = await ask(tagged(KARTEN, "密码被锁定了，怎么解锁？"), max_tokens=10)
    assert len(reply.text.encode()) <= 40


async def test_usage_counts_four_bytes_a_token() -> None:
    prompt = tagged(CARDS, "How do I unblock my PIN?")
    reply = await ask(prompt)
    assert reply.usage == Usage(len(prompt.encode()) // 4, len(reply.text.encode()) // 4)


@given(st.text(max_size=200), st.text(max_size=60))
async def test_any_prompt_has_one_answer_and_always_the_same(context: str, question: str) -> None:
    first, second = await answer(context, question), await answer(context, question)
    assert first == second
    assert first.startswith(LABEL)


SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "string"},
        "category": {"enum": ["cards", "loans"]},
        "score": {"type": "number"},
        "urgent": {"type": "boolean"},
        "passages": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["answer", "category", "score", "urgent", "passages"],
}


async def test_a_schema_is_answered_with_json_that_satisfies_it() -> None:
    value = orjson.loads((await ask(tagged(CARDS, "How do I unblock my PIN?"), schema=SCHEMA)).text)
    jsonschema.validate(value, SCHEMA)
    assert value["answer"].startswith(LABEL)
