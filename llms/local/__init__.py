"""Engines in this process: one for equal settings, shared by every block, batch and thread."""

from llms.local.base import EngineKey, LocalLLM, free_engine, shared_engine

__all__ = ["EngineKey", "LocalLLM", "free_engine", "shared_engine"]
