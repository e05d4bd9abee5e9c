"""Keys, and functions that encrypt or redact columns."""
