"""Tasks that judge generations."""
