"""Admission of requests: concurrency, rates, shared limits and budgets."""
