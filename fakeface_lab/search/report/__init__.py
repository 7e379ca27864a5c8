"""What came of a search."""
