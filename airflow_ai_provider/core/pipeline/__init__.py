"""The one path of a row: prepare, look up, hold, ask, settle, check."""
