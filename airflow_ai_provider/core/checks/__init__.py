"""Checks of one answer before it is given back."""
