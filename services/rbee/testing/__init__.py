"""Stand-ins for peers, as real processes that speak real HTTP; used by tests and benchmarks only."""
