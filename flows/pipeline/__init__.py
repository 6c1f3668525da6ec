"""Declaring, saving and reading a pipeline."""

from flows.pipeline.pipeline import Pipeline

__all__ = ["Pipeline"]
