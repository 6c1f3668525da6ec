"""What a person can mend, told as a sentence."""


class ConfigurationError(Exception):
    """Something in a file, or about Prefect's API, cannot work as it is."""
