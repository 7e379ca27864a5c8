"""One resumable training of any Keras model: its epochs, its checkpoints, what it leaves behind."""
