"""Upkeep of the ledger's tables."""
