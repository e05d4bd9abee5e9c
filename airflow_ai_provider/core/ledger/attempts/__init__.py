"""Attempts: opened before a request is sent, settled with its cost."""
