"""Steps that write rows in the formats trainers read."""
