"""The memory of a search: its runs in the store, how it is opened again, and who may write it."""
