"""Pipelines as Prefect flows: `python -m flows.text_generation`."""

import gc
import os

os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect, Hugging Face and vLLM would send what is used

_collects_garbage = gc.isenabled()
gc.disable()  # imports leave hardly any garbage, and looking for it takes 0.3 s of a program's start
try:
    from flows.dataset.distiset import Distiset
    from flows.dataset.summary import Summary
    from flows.errors import ConfigurationError, RunFailed
    from flows.pipeline.pipeline import Pipeline
finally:
    if _collects_garbage:
        gc.enable()

__all__ = ["ConfigurationError", "Distiset", "Pipeline", "RunFailed", "Summary"]
