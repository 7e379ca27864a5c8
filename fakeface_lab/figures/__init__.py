"""Every picture, by what it shows; each function returns a matplotlib Figure and writes nothing."""
