"""Technologies behind the keeper."""
