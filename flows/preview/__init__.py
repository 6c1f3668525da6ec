"""Dry runs: request traces, estimates, approval."""
