"""Engines in this process: one for equal settings, shared by every block, batch and thread."""

from llms.local.base import EngineKey, LocalLLM, free_engine, raise_if_rejected, shared_engine

__all__ = ["EngineKey", "LocalLLM", "free_engine", "raise_if_rejected", "shared_engine"]
