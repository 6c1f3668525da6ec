"""Typed configuration of models: strict fields, forms, secrets, prices."""
