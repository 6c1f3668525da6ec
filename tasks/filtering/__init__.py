"""Steps that drop rows."""
