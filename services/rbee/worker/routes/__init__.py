"""The worker's endpoints, one module per subject."""
