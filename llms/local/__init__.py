"""Engines in this process: one for equal settings, shared by every block, batch and thread."""

from llms.local.base import Key, LocalLLM, accepted, engine, free

__all__ = ["Key", "LocalLLM", "accepted", "engine", "free"]
