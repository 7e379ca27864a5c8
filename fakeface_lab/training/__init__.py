"""One resumable training of any Keras model: its arguments, epochs, checkpoints and outcome."""
