"""The queen's HTTP surface, one blueprint per file."""
