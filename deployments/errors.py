"""Errors that a user can fix."""


class ConfigurationError(Exception):
    """Raised when a file is invalid, or Prefect's API is unavailable or rejects it."""
