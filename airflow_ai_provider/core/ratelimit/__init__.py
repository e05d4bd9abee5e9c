"""Traffic: when a call may leave for a deployment, and whether it should.

One ``Gate`` per deployment and process; all gates of a deployment share its limits through Redis (``redis_desk.py``)
or, without one, keep them in the process (``local_desk.py``). The rules are pure and the same for both: ``rates.py``,
``slots.py``, ``adapt.py`` and ``breaker.py``, put together in ``rules.py``, and again as ``rules.lua``.
"""

from airflow_ai_provider.core.ratelimit.limiter import open_gates
from airflow_ai_provider.core.ratelimit.limits import CircuitChanged, Gate, Pass

__all__ = ["CircuitChanged", "Gate", "Pass", "open_gates"]
