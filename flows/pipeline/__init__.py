"""Pipelines: declared, saved and read; and the flows around them."""

from flows.pipeline.flow import flow
from flows.pipeline.pipeline import Pipeline

__all__ = ["Pipeline", "flow"]
