"""The queen: the one orchestrator of a fleet."""
