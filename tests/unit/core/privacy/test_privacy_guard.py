"""The leak guard and the log filter: nothing validated passes, whatever brought it there."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from airflow_ai_provider.core.privacy.leak_guard import PACKAGE, LeakGuard, RedactingFilter, redact_package_logs
from airflow_ai_provider.errors import PrivacyError

GUARD = LeakGuard.of(["standard"])
CARD, MAIL = "4111 1111 1111 1111", "ann@example.com"


def test_a_validated_value_stops_and_is_not_named() -> None:
    with pytest.raises(
        PrivacyError, match="an embedding text holds a value of kind card, email; nothing was sent"
    ) as caught:
        GUARD.check(f"a {CARD} b {MAIL}", place="an embedding text")
    assert "4111" not in str(caught.value)
    assert "ann" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "hello", "[EMAIL_7K2QM] [CARD_4D2QX]", "card no 4111111111111112", "2026-01-02 10:00"]
)
def test_tokens_and_what_only_a_word_gives_away_pass(text: str) -> None:
    GUARD.check(text, place="x")
    assert GUARD.redact(text) == text


def test_redacting_leaves_the_rest() -> None:
    assert GUARD.redact(f"for {MAIL}: {CARD}.") == "for [email]: [card]."


@pytest.fixture
def package_log() -> Iterator[io.StringIO]:
    """What a handler of the root logger gets of the package's records, as Airflow's would."""
    logger, root = logging.getLogger(PACKAGE), logging.getLogger()
    before = list(logger.handlers), root.level
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    redact_package_logs()
    redact_package_logs()
    yield written
    root.removeHandler(handler)
    root.setLevel(before[1])
    logger.handlers = before[0]


def test_messages_arguments_and_exceptions_are_redacted_once_for_every_logger(package_log: io.StringIO) -> None:
    for name in (PACKAGE, f"{PACKAGE}.core.pipeline.batch", f"{PACKAGE}.made.later"):
        log = logging.getLogger(name)
        log.info("sent to " + MAIL)
        log.warning("row %s, %d left", CARD, 7)
        try:
            raise ValueError(f"bad value {MAIL}") from KeyError(CARD)
        except ValueError:
            log.exception("failed")
    text = package_log.getvalue()
    assert MAIL not in text
    assert "4111" not in text
    assert text.count("sent to [email]\n") == 3
    assert text.count("row [card], 7 left\n") == 3
    assert text.count("ValueError: bad value [email]") == 3
    assert text.count("Traceback") >= 3


def test_other_loggers_and_clean_records_are_left_as_they_are(package_log: io.StringIO) -> None:
    logging.getLogger("another.package").warning("to %s", MAIL)
    assert package_log.getvalue() == f"to {MAIL}\n"
    record = logging.LogRecord(PACKAGE, logging.INFO, "f.py", 1, "%d of %d rows", (3, 7), None)
    assert RedactingFilter().filter(record)
    assert (record.msg, record.args) == ("%d of %d rows", (3, 7))


@pytest.mark.parametrize(
    "line",
    [
        "ledger: PostgreSQL 10.0.0.7:5432 · response store: Redis · rows: 1,234 (shard 1/4)",
        "manual__2026-11-24T13:52:55.123456+00:00 attempt 3f2a9c1e-8d4b-4c6a-9f00-1b2c3d4e5f60",
        "12,345 of 100,000 rows · 1,234.5 rows/s · cost 0.123456789 USD · 45,678,901 tokens",
        "part 00012 of shard 0003 written in 0.123 s; 98.7% reused",
    ],
)
def test_our_own_lines_pass_unchanged(line: str) -> None:
    record = logging.LogRecord(PACKAGE, logging.INFO, "f.py", 1, line, (), None)
    RedactingFilter().filter(record)
    assert record.getMessage() == line


def test_a_record_that_cannot_be_read_loses_its_text_and_raises_nothing() -> None:
    record = logging.LogRecord(PACKAGE, logging.INFO, "f.py", 1, f"{MAIL} %d", ("x",), None)
    assert RedactingFilter().filter(record)
    assert record.getMessage() == "a log message could not be searched (TypeError) and was left out"
