"""Settings of a run and of its steps."""
