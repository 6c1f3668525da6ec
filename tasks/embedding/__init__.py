"""Steps that compute vectors."""
