"""The ledger against a vendor's invoice."""
