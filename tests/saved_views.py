"""Reads the saved views of MLflow's page back from the tags of an experiment."""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

__all__ = ["VIEW_TAG", "read_view", "read_views"]

VIEW_TAG = "mlflow.sharedViewState."


def read_view(value: str) -> dict[str, Any]:
    """Return a view with its state unpacked, as MLflow's page does it."""
    view: dict[str, Any] = json.loads(value)
    packed = view["state"].removeprefix("deflate;")
    return {**view, "state": json.loads(zlib.decompress(base64.b64decode(packed)))}


def read_views(tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the views among the tags of an experiment by their names in the page's list."""
    views = [read_view(value) for key, value in tags.items() if key.startswith(VIEW_TAG)]
    return {view["name"]: view for view in views}
