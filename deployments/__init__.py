"""Deployments in YAML, and `python -m deployments`, which reconciles a Prefect server with them."""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect, Hugging Face and vLLM would send what is used
