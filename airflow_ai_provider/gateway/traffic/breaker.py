"""Whether to send at all: a circuit opens when a deployment fails, and lets single probes find out when it is back.

closed ── failures in a row, or too many of the last calls ──▶ open ── time for a probe ──▶ half open
  ▲                                                              ▲                            │
  └────────────────────────── the probe was answered ────────────┼────────────────────────────┤
                                                                 └── it failed, or was lost ──┘
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_ai_provider.gateway.traffic.desk import CircuitState, ProbeWord
from airflow_ai_provider.gateway.traffic.terms import BreakerTerms

FIRST_PROBE = 1.0
"""Seconds after it opened; doubles up to ``probe_every``."""


@dataclass(slots=True)
class Circuit:
    state: CircuitState = "closed"
    streak: int = 0
    good: float = 0.0
    bad: float = 0.0
    """Calls of the last window: older ones fade (exponentially, the window being the time constant)."""
    counted: float = 0.0
    """When they were last counted."""
    probes: int = 0
    probe_at: float = 0.0
    prober: str = ""
    reason: str = ""


def judge(circuit: Circuit, terms: BreakerTerms, *, ok: int, failed: int, streak: int, now: float) -> None:
    """Open a closed circuit if it is time. Answers to what was sent before it opened change nothing any more."""
    if circuit.state != "closed" or not (ok or failed):
        return
    circuit.streak = streak if ok else circuit.streak + streak
    fade = math.exp(-(now - circuit.counted) / terms.window)
    circuit.good, circuit.bad, circuit.counted = circuit.good * fade + ok, circuit.bad * fade + failed, now
    calls = circuit.good + circuit.bad
    if circuit.streak >= terms.failures:
        _open(circuit, terms, f"{circuit.streak} failures in a row", now)
    elif failed and calls >= terms.calls and circuit.bad / calls >= terms.failure_rate:
        _open(circuit, terms, f"{100 * circuit.bad / calls:.0f}% of {calls:.0f} calls failed", now)


def probe(
    circuit: Circuit, terms: BreakerTerms, *, worker: str, word: ProbeWord, cool_until: float, now: float
) -> bool:
    """Hear of a probe, and say whether ``worker`` may send one now."""
    if circuit.state == "closed":
        return False
    if word == "ok":
        _close(circuit)
    elif word == "failed" and circuit.prober == worker:
        _open(circuit, terms, "the probe failed", now)
    elif word == "free" and circuit.prober == worker:
        circuit.state, circuit.prober, circuit.probe_at, circuit.reason = "open", "", now, "the probe was not sent"
    elif word == "want" and now >= max(circuit.probe_at, cool_until):
        circuit.state, circuit.prober, circuit.reason = "half_open", worker, "time for a probe"
        circuit.probe_at = now + terms.probe_every  # by then this one counts as lost
        return True
    return False


def _open(circuit: Circuit, terms: BreakerTerms, reason: str, now: float) -> None:
    circuit.probes = circuit.probes + 1 if circuit.state == "half_open" else 0
    circuit.state, circuit.reason, circuit.prober = "open", reason, ""
    circuit.probe_at = now + min(FIRST_PROBE * 2.0**circuit.probes, terms.probe_every)


def _close(circuit: Circuit) -> None:
    circuit.state, circuit.reason, circuit.prober = "closed", "the probe was answered", ""
    circuit.streak, circuit.good, circuit.bad = 0, 0.0, 0.0
