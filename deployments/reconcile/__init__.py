"""Desired state in YAML against the actual state of a Prefect server."""
