"""Small files that are either the old or the new one, whenever the process is killed or the power fails."""

import os
from pathlib import Path

__all__ = ["replace_text", "sync"]


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and move it there, once it is on the disk."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    # Without it a file system may keep the new name and lose the content.
    sync(partial)
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
