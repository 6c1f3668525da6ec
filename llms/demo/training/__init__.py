"""How the demo model was made; not needed to run it."""
