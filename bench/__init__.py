"""What `make bench` measures: start-up, relay cost, decode speed, conversion and quality, side by side in one run."""
