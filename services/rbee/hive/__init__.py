"""The pool manager of one node: fetches models and starts, watches and ends workers."""
