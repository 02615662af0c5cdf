"""What the hive needs of the machine, one technology per module."""
