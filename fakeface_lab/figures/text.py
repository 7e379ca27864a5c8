"""File names as captions."""

__all__ = ["printable"]


def printable(name: str) -> str:
    """Return a name that Matplotlib can draw: no dollar sign is taken for mathematics, no byte for half a letter."""
    return name.encode("utf-8", "replace").decode().replace("$", r"\$")
