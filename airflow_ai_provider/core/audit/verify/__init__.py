"""Verification of the whole trail, and proofs of single events."""
