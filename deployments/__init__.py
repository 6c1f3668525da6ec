"""Deployments as data: one YAML per deployment."""
