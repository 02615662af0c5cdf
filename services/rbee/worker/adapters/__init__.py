"""What the worker needs from outside, behind the ports: the engine and the hive."""
