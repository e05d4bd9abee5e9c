"""A vendor to test against: a real HTTP server that speaks the OpenAI protocol, misbehaves on demand and sends a bill.

Use it to test DAGs without a model, a key or a cost, and to find out what a fault would have cost::

    from airflow_ai_provider.testing.behaviour import Faults
    from airflow_ai_provider.testing.vendor import VendorDouble

    with VendorDouble(faults=Faults(rate_429=0.05, rate_drop_after=0.01)) as double:
        ...  # point a deployment's api_base at double.base_url
        assert sum(line.cost_nanodollars for line in double.invoice()) <= what_the_ledger_says

It knows nothing of the rest of this package, so that it can bear witness against it.
"""
