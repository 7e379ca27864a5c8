"""What to try next, as a pure function of what is recorded."""
