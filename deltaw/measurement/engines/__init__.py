"""Where the loop runs: a map over independent units of work."""
