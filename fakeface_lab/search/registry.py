"""Which models of a search the registry names: the documented one first, a challenger only if it is better."""

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fakeface_lab.errors import SearchError
from fakeface_lab.evaluation.comparison import Judgement
from fakeface_lab.search.finale import Finals
from fakeface_lab.tracking.models import model_of_run
from fakeface_lab.tracking.store import Store

__all__ = ["register"]

CHAMPION, CANDIDATE = "champion", "candidate"


def register(store: Store, finals: Finals, name: str, comparison: Judgement | None) -> dict[str, int]:
    """Register the first seed's models and return alias to version.

    The documented model takes `champion` where nobody holds it; the best one always takes `candidate`, and
    `champion` only where the verdict is "better". A run that is registered already keeps its version.
    """
    client = store.client
    try:
        client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    held = CHAMPION in client.get_registered_model(name).aliases
    aliases = {}
    if finals.documented and not held:
        aliases[CHAMPION] = _version(store, name, finals.documented[0])
    aliases[CANDIDATE] = _version(store, name, finals.best[0])
    if comparison is not None and comparison.verdict == "better":
        aliases[CHAMPION] = aliases[CANDIDATE]
    for alias, version in aliases.items():
        client.set_registered_model_alias(name, alias, str(version))
    return aliases


def _version(store: Store, name: str, run: Run) -> int:
    client, run_id = store.client, run.info.run_id
    quoted = name.replace("'", "''")
    for version in client.search_model_versions(f"name = '{quoted}'"):
        if version.run_id == run_id:
            return int(version.version)
    source = model_of_run(store, run_id)
    if source is None:
        raise SearchError(f"run {run.info.run_name}: its model is not in {store.uri} any more; use --restart")
    created = client.create_model_version(
        name, source, run_id, tags={"test_accuracy": str(run.data.metrics.get("test_accuracy"))}
    )
    return int(created.version)
