"""What a person who runs a pipeline has to know and do."""


class ConfigurationError(ValueError):
    """Something that cannot work, found before anything was paid for: what, where, and what to type instead."""


class RunFailed(Exception):
    """A run that ended without all it was asked for: why, and where the rows it had made are."""
