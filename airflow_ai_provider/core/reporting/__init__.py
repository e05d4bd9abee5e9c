"""The ledger for readers outside: closed days as Parquet, costs as pages and charts."""
