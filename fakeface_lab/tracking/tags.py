"""Text of any length in tags. Loads no TensorFlow."""

from collections.abc import Mapping

from mlflow.entities import RunTag

__all__ = ["MAX_TAG_CHARS", "as_entities", "join_text", "split_text"]

# Stores differ: some take 5,000 characters, MLflow's own 8,000, and it cuts what is longer without a word.
MAX_TAG_CHARS = 5000


def as_entities(tags: Mapping[str, str]) -> list[RunTag]:
    """Return tags as MLflow writes them, each cut to what every store takes."""
    return [RunTag(key, value[:MAX_TAG_CHARS]) for key, value in tags.items()]


def split_text(key: str, text: str) -> dict[str, str]:
    """Return a text as one tag, or as several (`key`, `key.1`, `key.2`, ...) where it is too long for one."""
    parts = [text[first : first + MAX_TAG_CHARS] for first in range(0, len(text), MAX_TAG_CHARS)] or [""]
    return {key if number == 0 else f"{key}.{number}": part for number, part in enumerate(parts)}


def join_text(tags: Mapping[str, str], key: str) -> str:
    """Return the text that `split_text` has split.

    Raises:
        KeyError: there is no such tag.
    """
    text, number = tags[key], 1
    while f"{key}.{number}" in tags:
        text += tags[f"{key}.{number}"]
        number += 1
    return text
