"""What the steps call: sandboxes, running programs, the fleet, and the ways to observe it."""
