"""The state of a search: its runs in the store, how it is resumed, and which process may write it."""
