"""When a call may be sent to a deployment, and whether it should.

One ``Gate`` per deployment and process; all gates of a deployment share its limits through Redis or, without one, keep
them in the process (both in ``limiter.py``). The rules are pure and the same for both: ``rules.py``, with the parts
of it that stand in ``permits.py`` and ``feedback.py``, and again as ``rules.lua``. ``queue.py`` is the gate itself.
"""

from airflow_ai_provider.core.ratelimit.limiter import open_gates
from airflow_ai_provider.core.ratelimit.limits import CircuitChanged, Gate, Pass

__all__ = ["CircuitChanged", "Gate", "Pass", "open_gates"]
