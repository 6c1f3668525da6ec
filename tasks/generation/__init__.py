"""Tasks that generate text from prompts."""
