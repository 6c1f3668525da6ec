"""What runs where, when and with what: facts in files, and `python -m deployments` that applies them."""
