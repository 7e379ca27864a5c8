"""The settings that train the best trial of a search again, as a file for `baseline --config`."""

import json
import tempfile
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from fakeface_lab.data.sources import DOCUMENTED_NAME
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.tracking.finding import Run
from fakeface_lab.tracking.tags import join_text

__all__ = ["write_best_settings"]


def write_best_settings(ledger: Ledger, best: Run, folder: Path) -> str:
    """Write `best.toml`, the settings that train the best trial again, and return what a reader is to do with it.

    The baseline keeps its last epoch, so the epochs are those up to the one that the trial kept: equal weights.
    """
    values = json.loads(join_text(best.data.tags, "values"))
    params = best.data.params
    parent = ledger.parent
    with tempfile.TemporaryDirectory() as partial:
        client = parent.store.client
        copy = parent.writer.call(lambda: client.download_artifacts(best.info.run_id, "settings.json", partial))
        recorded = json.loads(Path(copy).read_text(encoding="utf-8"))
    settings: dict[str, str | int | float | None] = {
        "name": f"best of {parent.name}"[:200],
        "data": _data_setting(best),
        "positive": recorded["positive"],
        "split": params["split"],
        "image_size": int(params["image_size"]),
        "seed": int(params["seed"]),
        "epochs": int(best.data.tags["kept_epoch"]),
        "threads": int(params["num_threads"]),
    }
    lines = [
        f"# Trial {best.data.tags['trial']} of the search {json.dumps(parent.name)}, score {best.data.tags['score']}:",
        "#     python -m fakeface_lab.baseline --config best.toml",
        "# trains it again up to the epoch whose weights it kept; on the same machine to the same weights.",
        *(f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None),
        "",
        "[hyperparameters]",
        *(f"{key} = {_toml(values[key])}" for key in Hyperparameters.model_fields),
    ]
    (folder / "best.toml").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return "Train the winner again: download `best.toml`, then `python -m fakeface_lab.baseline --config best.toml`."


def _data_setting(run: Run) -> str:
    """Return what to say for `--data` to get the images of a run."""
    dataset = run.inputs.dataset_inputs[0].dataset
    address = json.loads(dataset.source)["uri"]
    if address.startswith("kaggle:"):
        return DOCUMENTED_NAME
    folder = Path(url2pathname(urlparse(address).path))
    # The demo faces are drawn into a cache folder, whose place is no setting.
    return "demo" if dataset.name == "demo" and folder.name.startswith("demo-") else str(folder)


def _toml(value: str | int | float) -> str:
    """Return a value as TOML; JSON's strings are TOML's, as long as no letter is split into two escapes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
