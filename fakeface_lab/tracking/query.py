"""Asking the store for runs: text in filters, and every page of an answer. Loads no TensorFlow."""

from collections.abc import Sequence

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from fakeface_lab.errors import TrackingError

__all__ = ["all_experiments", "quote", "search_runs"]

_PAGE_SIZE = 500


def quote(text: str) -> str:
    """Return `text` as a literal of MLflow's filter language.

    MLflow does not undo an escaped quote, so a literal holds one kind of quotes at most.

    Raises:
        TrackingError: the text holds both kinds.
    """
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    raise TrackingError(f"name {text}: holds both ' and \", which MLflow cannot search for; use one kind of quotes")


def search_runs(
    client: MlflowClient, experiment_ids: Sequence[str], query: str, *, newest_first: bool = False
) -> list[Run]:
    """Return all runs that match a filter, by their start: the oldest first, or the newest."""
    order = "DESC" if newest_first else "ASC"
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            list(experiment_ids),
            query,
            max_results=_PAGE_SIZE,
            order_by=[f"attributes.start_time {order}"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs


def all_experiments(client: MlflowClient) -> list[str]:
    """Return the ids of all experiments of the store."""
    return [experiment.experiment_id for experiment in client.search_experiments()]
