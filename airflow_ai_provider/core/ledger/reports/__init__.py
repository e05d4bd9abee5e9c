"""Costs and call history, as queries of the ledger."""
