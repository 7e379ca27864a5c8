"""What is remembered of a search, and who may write it."""
