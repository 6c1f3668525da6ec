"""Pipelines as Prefect flows: `python -m flows.text_generation`."""

from flows.distiset import Distiset, Summary
from flows.errors import Refused, RunFailed
from flows.pipeline import Pipeline

__all__ = ["Distiset", "Pipeline", "Refused", "RunFailed", "Summary"]
