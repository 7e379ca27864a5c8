"""How often the test images of a split were looked at: counted in the store, over all its runs. Loads no TensorFlow.

What is opened is a test set, not a run: a second search, a baseline and an evaluation look at the same images. Each run
that looks says so in tags of its own before it does, and the number is the sum over those runs, so that no two
processes write one counter. A deleted run has looked all the same.
"""

import json

from mlflow.entities import ViewType

from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = ["OPENED_TAG", "describe_openings", "num_openings", "record_opening", "seal_key"]

OPENED_TAG = "test_opened"
_PURPOSES_TAG, _NUM_TAG = "test_opened_for", "test_openings"
_PAGE = 500


def seal_key(digest: str, split: str, seed: int | str) -> str:
    """Return the value of `OPENED_TAG` that names these test images.

    Args:
        digest: of the data set's manifest; its first 32 digits count.
        split: name of the split.
        seed: what it was drawn with.
    """
    return f"{digest[:32]} {split} seed {seed}"


def record_opening(run: TrackedRun, key: str, purpose: str) -> None:
    """Write on `run` that it is about to look at the test images `key`; the same purpose again is the same opening."""
    tags = run.writer.call(lambda: run.store.client.get_run(run.run_id)).data.tags
    purposes: list[str] = json.loads(tags.get(_PURPOSES_TAG, "[]"))
    if purpose not in purposes:
        purposes.append(purpose)
        run.set_tags({OPENED_TAG: key, _PURPOSES_TAG: json.dumps(purposes), _NUM_TAG: str(len(purposes))})


def num_openings(store: Store, key: str) -> int:
    """Return how often the test images `key` were opened, by the runs of all experiments, deleted ones included."""
    experiments = [found.experiment_id for found in store.client.search_experiments(view_type=ViewType.ALL)]
    total, token = 0, None
    while True:
        page = store.client.search_runs(
            experiments, f"tags.{OPENED_TAG} = '{key}'", ViewType.ALL, max_results=_PAGE, page_token=token
        )
        total += sum(int(run.data.tags[_NUM_TAG]) for run in page)
        token = page.token
        if not token:
            return total


def describe_openings(store: Store, key: str) -> str:
    """Return in one sentence or two how often the test images `key` were opened, and what that does to figures."""
    number = num_openings(store, key)
    split = key.split(" ", 1)[1].replace(" seed ", " split, seed ")
    opened = {0: "never been opened", 1: "been opened once"}.get(number, f"been opened {number} times")
    text = f"The test images ({split}) have {opened} in this store."
    if number > 1:
        text += " Whatever is chosen by what they showed looks better on them than it is."
    if split.startswith("documented"):
        text += " They also judge each epoch, as documented, so figures on them are too good from the first time on."
    return text
