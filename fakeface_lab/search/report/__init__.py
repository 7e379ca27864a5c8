"""The result of a search: leaderboard and report."""
