"""Compare runs over seeds."""
