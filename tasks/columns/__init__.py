"""Steps that rearrange columns."""
