"""The verdict: pure functions on counts and sums, knowing neither Flask nor SQL."""
