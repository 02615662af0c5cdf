"""What `make bench` measures: start-up, relay, decoding, conversion and quality, side by side in one run."""
