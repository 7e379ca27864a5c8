"""What the store knows about a data set: its newest audit, and how often its test images were opened.

Openings belong to a test set, not to a run: a search, a baseline and an evaluation may all look at the same images.
Each run records its own openings in its tags before it looks; the total is their sum, so that no two processes write
one counter. Deleted runs count too: they have looked at the images. Loads no TensorFlow.
"""

import json
from dataclasses import dataclass

from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store, all_experiments, search_runs

__all__ = ["OPENED_TAG", "FoundAudit", "describe_openings", "find_audit", "num_openings", "record_opening", "seal_key"]

OPENED_TAG = "test_opened"
_PURPOSES_TAG, _NUM_TAG = "test_opened_for", "test_openings"


@dataclass(frozen=True)
class FoundAudit:
    """The newest audit of a data set.

    Attributes:
        run_id: MLflow's id of the audit's run.
        worst: severity of its worst finding: "fail", "warn", "info", or "" without findings.
        verdict: the audit in plain words.
    """

    run_id: str
    worst: str
    verdict: str

    def tags(self) -> dict[str, str]:
        """Return tags that link a later run on the same data to this audit."""
        return {"audit_run_id": self.run_id, "audit_worst": self.worst, "audit_verdict": self.verdict}


def find_audit(store: Store, data_digest: str) -> FoundAudit | None:
    """Return the newest finished audit of exactly these images (name, label and content of each), or None.

    Searches all experiments: the same images may be in a folder of another name.
    """
    # An audit that was stopped has no verdict.
    query = f"tags.role = 'audit' and tags.data_digest = '{data_digest}' and attributes.status = 'FINISHED'"
    found = search_runs(store.client, all_experiments(store.client), query, newest_first=True, limit=1)
    if not found:
        return None
    tags = found[0].data.tags
    return FoundAudit(found[0].info.run_id, tags.get("audit_worst", ""), tags.get("audit_verdict", ""))


def seal_key(digest: str, split: str, seed: int | str) -> str:
    """Return the value of `OPENED_TAG` that names these test images.

    Args:
        digest: of the data set's manifest; only its first 32 digits are used.
        split: name of the split.
        seed: the split's seed.
    """
    # As many digits as runs record of a data set: MLflow takes at most 36.
    return f"{digest[:32]} {split} seed {seed}"


def record_opening(run: TrackedRun, key: str, purpose: str) -> None:
    """Record on `run` that it is about to look at the test images `key`; each purpose counts once."""
    # Not from `run.run`, which was read when the run was opened: this process may have recorded a purpose since.
    tags = run.writer.call(lambda: run.store.client.get_run(run.run_id)).data.tags
    purposes: list[str] = json.loads(tags.get(_PURPOSES_TAG, "[]"))
    if purpose not in purposes:
        purposes.append(purpose)
        run.set_tags({OPENED_TAG: key, _PURPOSES_TAG: json.dumps(purposes), _NUM_TAG: str(len(purposes))})


def num_openings(store: Store, key: str) -> int:
    """Return how often the runs of all experiments, deleted ones included, opened the test images `key`."""
    experiments = all_experiments(store.client, with_deleted=True)
    runs = search_runs(store.client, experiments, f"tags.{OPENED_TAG} = '{key}'", with_deleted=True)
    return sum(int(run.data.tags[_NUM_TAG]) for run in runs)


def describe_openings(store: Store, key: str) -> str:
    """Return one to three sentences: how often the test images `key` were opened, and what that does to figures."""
    number = num_openings(store, key)
    split = key.split(" ", 1)[1].replace(" seed ", " split, seed ")
    opened = {0: "never been opened", 1: "been opened once"}.get(number, f"been opened {number} times")
    text = f"The test images ({split}) have {opened} in this store."
    if number > 1:
        text += " Anything chosen by results on them looks better on them than it is."
    if split.startswith("documented"):
        text += " They also judge each epoch, as documented, so figures on them are too good from the start."
    return text
