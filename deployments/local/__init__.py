"""Server, workers and their processes on this machine."""
