"""What MLflow's scoring server runs for a registered model: image files in base64 in, decisions and warnings out.

`tracking.serving` copies this file into the served form and names it to MLflow. Files are decoded and decided as by
`predict`, with the same words about those that cannot be used.
"""

import base64
import binascii
from dataclasses import asdict
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fakeface_lab.assess.application import decide, reliability_warnings
from fakeface_lab.assess.tracked_model import load_tracked_model
from fakeface_lab.data.images import UnusableImageError, decode_bytes
from fakeface_lab.errors import DataError
from fakeface_lab.tracking.lookup import FoundModel
from fakeface_lab.tracking.serving import Answer, serve

__all__ = ["load_served"]

_MOST_NAMED = 5  # unusable images named in one line


def load_served(found: FoundModel) -> Answer:
    """Load a model, and what speaks against trusting it; return the function that answers requests.

    A request has a row per image: `image`, a file in base64, and optionally `file`, its name in the answer. The answer
    is what `predict --json` prints, except that one image that cannot be used makes the whole request a DataError.
    """
    model = load_tracked_model(found)
    warnings = reliability_warnings(found)
    # The server answers requests in threads; a single request uses all cores.
    lock = Lock()

    def answer(rows: pd.DataFrame) -> dict[str, Any]:
        names, pictures = _decode(rows, model.image_size_px)
        with lock:
            decisions = decide(model, names, pictures)
        return {
            "model": found.uri,
            "run_id": found.run.info.run_id,
            "threshold": model.threshold,
            "warnings": warnings,
            "decisions": [asdict(decision) for decision in decisions],
        }

    return answer


def _decode(rows: pd.DataFrame, size_px: int) -> tuple[list[str], list[npt.NDArray[np.uint8]]]:
    """Return the name and the pixels of each image; an image without a name has its number, from 0."""
    if rows.empty:
        raise DataError("the request has no images; send at least one row with a column `image`")
    numbers = [str(number) for number in range(len(rows))]
    given = rows["file"] if "file" in rows else [None] * len(rows)
    names = [name if isinstance(name, str) else number for name, number in zip(given, numbers, strict=True)]
    pictures, unusable = [], []
    for name, text in zip(names, rows["image"], strict=True):
        try:
            pictures.append(decode_bytes(base64.b64decode(text, validate=True), size_px)[0])
        except (binascii.Error, TypeError, ValueError):  # wrong padding, not text, not ASCII
            unusable.append(f"image {name}: not base64")
        except UnusableImageError as err:
            unusable.append(f"image {name}: {err}")
    if unusable:
        more = f"; and {len(unusable) - _MOST_NAMED} more" if len(unusable) > _MOST_NAMED else ""
        raise DataError(
            f"{len(unusable)} of {len(rows)} images cannot be used: {'; '.join(unusable[:_MOST_NAMED])}{more}; send "
            f"image files with 8 bits per channel, in base64"
        )
    return names, pictures


serve(load_served)
