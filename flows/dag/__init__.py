"""The graph of steps, its text form and its diagram."""
