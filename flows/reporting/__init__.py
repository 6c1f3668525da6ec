"""Progress and results of a run, for terminals, for Prefect and for programs."""
