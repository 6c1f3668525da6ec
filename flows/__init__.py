"""Pipelines as Prefect flows: `python -m flows.text_generation`."""

from flows.dataset.distiset import Distiset
from flows.dataset.summary import Summary
from flows.errors import ConfigurationError, RunFailed
from flows.pipeline.pipeline import Pipeline

__all__ = ["ConfigurationError", "Distiset", "Pipeline", "RunFailed", "Summary"]
