"""Structured output: grammars, regular expressions, JSON schemas, validation."""
