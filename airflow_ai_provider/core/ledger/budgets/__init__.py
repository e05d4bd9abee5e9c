"""Limits of budgets, and holds against them."""
