"""What to try next: a pure function of what is recorded."""
