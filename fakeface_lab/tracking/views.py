"""Saved views of a search in MLflow's page: its trials as a leaderboard and as charts, each opened by a link.

The page keeps a saved view in a tag of the experiment, as a compressed state of itself. MLflow does not document this;
it was written for version 3.17, and a version that does not know the tag ignores it.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from mlflow.exceptions import MlflowException

from fakeface_lab.errors import TrackingError, without_credentials
from fakeface_lab.tracking.lookup import Run
from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.store import MAX_TAG_CHARS, Store

__all__ = ["save_views", "view_links"]

_TAG = "mlflow.sharedViewState."
# By the name of a view, what its link adds: whether the page shows a table or charts is in the address alone.
_MODES = {"leaderboard": "", "charts": "&compareRunsMode=CHART"}
_MAX_NAME_CHARS = 200
_MAX_AXES, _MAX_SCATTERS = 12, 6  # more are drawn too small to read
# The page adds a chart for each metric that has none to the section "Model metrics": folded away here.
_SECTIONS = [
    {"uuid": "trials", "name": "Trials", "display": True, "columns": 2},
    {"uuid": "hyperparameters", "name": "Score by hyperparameter", "display": True, "columns": 3},
    {"uuid": "metrics", "name": "Model metrics", "display": False},
]


def save_views(
    search: StoredRun,
    objective: str,
    direction: Literal["min", "max"],
    params: Sequence[str],
    conditional: Collection[str] = (),
) -> None:
    """Write the two views of a search to its experiment; repeated, nothing changes.

    They replace those of an earlier search of the same name. If the store refuses them or does not answer, the user is
    told so, and nothing is raised.

    Args:
        search: the parent run.
        objective: the metric whose curves are drawn.
        direction: `min` if a smaller score is better, `max` if a larger one is.
        params: the trials' parameters that are searched, the most important first; the last ones are left out if all
            would exceed the length of a tag.
        conditional: those that are inactive in some trials, which parallel coordinates would leave out.
    """
    client, experiment_id = search.store.client, search.run.info.experiment_id
    try:
        for key, value in _tags(search.run, objective, direction, params, conditional).items():
            search.writer.call(partial(client.set_experiment_tag, experiment_id, key, value))
    except TrackingError as err:
        search.writer.notify(f"MLflow's page has no saved views of this search: {without_credentials(str(err))}")


def view_links(store: Store, search: Run) -> dict[str, str]:
    """Return the addresses of the views of a search: `leaderboard` and `charts`.

    Empty if the store does not have them or does not answer, and for a superseded search.
    """
    if "superseded_by" in search.data.tags:
        return {}
    try:
        tags = store.client.get_experiment(search.info.experiment_id).tags
    except (MlflowException, OSError):  # a missing link must not end a search
        return {}
    table = replace(store, experiment_id=search.info.experiment_id).runs_link()
    keys = {name: _key(search, name) for name in _MODES}
    return {
        name: f"{table}&viewStateShareKey={key}{_MODES[name]}" for name, key in keys.items() if f"{_TAG}{key}" in tags
    }


def _key(search: Run, name: str) -> str:
    # By the search's name and not its run: started over again and again, it would fill the page's list of views.
    return f"{name}-{hashlib.sha256(search.data.tags['search'].encode()).hexdigest()[:16]}"


def _tags(
    search: Run, objective: str, direction: str, params: Sequence[str], conditional: Collection[str]
) -> dict[str, str]:
    """Return the tags with as many of the parameters as fit into them."""
    tags: dict[str, str] = {}
    for num_params in range(len(params), -1, -1):
        state = _compress(_state(search, objective, direction, params[:num_params], conditional))
        tags = {f"{_TAG}{_key(search, name)}": _saved_view(search, name, state) for name in _MODES}
        if all(len(value) <= MAX_TAG_CHARS for value in tags.values()):
            break
    return tags


def _saved_view(search: Run, name: str, state: str) -> str:
    title = f"{name.capitalize()}: {search.data.tags['search'][:_MAX_NAME_CHARS]}"
    # The time of the search's start: written again, the view is the same.
    created_at_ms = int(search.info.start_time)
    return json.dumps({"name": title, "createdAt": created_at_ms, "updatedAt": created_at_ms, "state": state})


def _compress(state: dict[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return f"deflate;{base64.b64encode(packed).decode()}"


def _state(
    search: Run, objective: str, direction: str, params: Sequence[str], conditional: Collection[str]
) -> dict[str, Any]:
    """Return where the page differs from its initial state: equal in both views, so that each has table and charts."""
    axes = [name for name in params if name not in conditional][:_MAX_AXES]
    charts = [_parallel_coordinates(axes), _curves(objective), *(_scatter(name) for name in params[:_MAX_SCATTERS])]
    return {
        # Not by the search's name, which a superseded search has too.
        "searchFilter": f"tags.`mlflow.parentRunId` = '{search.info.run_id}' and tags.role = 'trial'",
        "orderByKey": "metrics.`score`",
        "orderByAsc": direction == "min",
        "selectedColumns": ["metrics.`score`", *(f"params.`{name}`" for name in params), "attributes.`Models`"],
        "runsHiddenMode": "SHOW_ALL",  # the page draws ten runs otherwise
        "compareRunSections": _SECTIONS,
        "isAccordionReordered": True,  # the page sorts the sections by name otherwise
        "compareRunCharts": [
            {"uuid": f"chart-{number}", "deleted": False, "isGenerated": False, **chart}
            for number, chart in enumerate(charts)
        ],
    }


def _parallel_coordinates(params: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "PARALLEL",
        "metricSectionId": "trials",
        "selectedParams": list(params),
        "selectedMetrics": ["score"],
        "showAllRuns": True,
    }


def _curves(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricSectionId": "trials",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _scatter(param: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "metricSectionId": "hyperparameters",
        "xaxis": {"key": param, "type": "PARAM"},
        "yaxis": {"key": "score", "type": "METRIC"},
    }
