"""The process around a run: server, task runner, memory, number formats."""
