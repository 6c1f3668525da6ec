"""Admission control: concurrency, rates, shared limits and budgets."""
