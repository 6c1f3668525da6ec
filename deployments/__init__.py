"""Deployments in YAML, and `python -m deployments`, which reconciles a Prefect server with them."""
