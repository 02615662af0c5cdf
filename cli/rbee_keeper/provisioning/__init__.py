"""Software on nodes: playbooks run by the keeper, their display, the fleet lock and the record of runs."""
