"""The double from a shell: ``python -m airflow_ai_provider.testing.vendor``. Prints its URL as the first line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from dataclasses import fields
from pathlib import Path

from airflow_ai_provider.testing.behaviour import Behaviour, Changes, Faults, Latency, Limits
from airflow_ai_provider.testing.invoice import Price
from airflow_ai_provider.testing.server import HOST, VendorServer


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        behaviour = Behaviour().changed(_settings(options))
    except ValueError as error:
        parser.error(str(error))
    server = VendorServer(behaviour, options.invoice, options.requests)
    with contextlib.closing(new_event_loop()) as loop:
        loop.run_until_complete(_serve(server, options.port, with_parent=options.with_parent))
    return 0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, for more requests per second."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(server: VendorServer, port: int, *, with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, stop.set)
    if with_parent:  # the parent's end of the pipe closes when it ends, however it ends
        loop.add_reader(sys.stdin.fileno(), stop.set)
    port = await server.open(port)
    sys.stdout.write(f"http://{HOST}:{port}/v1\n")
    sys.stdout.flush()
    await stop.wait()
    if with_parent:
        loop.remove_reader(sys.stdin.fileno())
    await server.close()


def _settings(options: argparse.Namespace) -> Changes:
    given: Changes = {
        "faults": Faults(**{f.name: getattr(options, f.name) for f in fields(Faults)}),
        "latency": Latency(options.latency, options.jitter),
        "limits": Limits(options.rpm, options.tpm),
        "script": [step for step in options.script.split(",") if step],
        "seed": options.seed,
        "api_key": options.api_key,
        "context_tokens": options.context_tokens,
    }
    if options.price:
        given["prices"] = dict(_price(text) for text in options.price)
    return given


def _price(text: str) -> tuple[str, Price]:
    model, equals, amounts = text.rpartition("=")
    for_input, slash, for_output = amounts.partition("/")
    if not equals or not slash:
        raise ValueError(f"--price {text}: expected MODEL=INPUT/OUTPUT in USD per million tokens")
    return model, Price(for_input, for_output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m airflow_ai_provider.testing.vendor", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; always on 127.0.0.1")
    parser.add_argument("--invoice", type=Path, help="JSONL file that gets a line per answer charged")
    parser.add_argument("--requests", type=Path, help="JSONL file that gets every request received")
    parser.add_argument("--price", action="append", metavar="MODEL=IN/OUT", help="USD per million tokens; * is any")
    parser.add_argument("--api-key", help="refuse any other key with 401")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="mean seconds to an answer")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds around the mean")
    parser.add_argument("--rpm", type=int, help="requests per minute and model")
    parser.add_argument("--tpm", type=int, help="tokens per minute and model")
    parser.add_argument("--context-tokens", type=int, default=Behaviour().context_tokens)
    parser.add_argument("--script", default="", help="comma-separated fault names and ok, for the first requests")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    for rate in fields(Faults):
        parser.add_argument(f"--{rate.name.replace('_', '-')}", type=float, default=0.0, metavar="SHARE")
    return parser
