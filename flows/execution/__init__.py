"""Execution: a run, its batches, one batch of one step."""
