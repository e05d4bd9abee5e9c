"""Sealed segments into the archive, with signed manifests."""
