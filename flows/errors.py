"""Errors that end a run."""


class ConfigurationError(ValueError):
    """A mistake found before anything was paid for; the message says what, where, and what to write instead."""


class RunFailed(Exception):
    """A run that ended early; the message says why, a note where the rows made until then are."""
