"""Which models of a search the registry names: a challenger becomes champion only by beating the present one.

A verdict is about a configuration, judged with several seeds. Registered is the model of its first seed, a choice made
before the test images were opened: the best seed by their scores would be a selection on them, and an average of all
seeds would cost as many times the memory and time of each prediction. Every version says what was judged, and what it
scores by itself.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fakeface_lab.detector.finals import Finals
from fakeface_lab.detector.judging import judge_runs
from fakeface_lab.errors import SearchError
from fakeface_lab.tracking.models import model_of_run
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = ["Registration", "register"]

CHAMPION, CANDIDATE = "champion", "candidate"
_DONE_TAG, _PLAN_TAG, _JUDGED_TAG = "registered", "registering", "judged_runs"


@dataclass(frozen=True)
class Registration:
    """What was registered.

    Attributes:
        aliases: alias to version, of those that this search has set.
        reason: why the champion is what it is, in one line.
    """

    aliases: dict[str, int]
    reason: str


def register(parent: TrackedRun, finals: Finals, name: str, objective: str) -> Registration:
    """Register the models of some finals, once: shown again, an old result moves no alias.

    Where nobody is champion the documented configuration becomes it. The best one always takes `candidate`, and
    `champion` only if it is better than the present champion on the same test images. What is to be done is written on
    the parent run first, so that a process killed in between does the same when it is started again.

    Raises:
        SearchError: a model is not in the store any more.
    """
    tags = parent.writer.call(lambda: parent.store.client.get_run(parent.run_id)).data.tags
    done, plan = (json.loads(tags.get(tag, "{}")) for tag in (_DONE_TAG, _PLAN_TAG))
    these = _fingerprint([*finals.best, *finals.documented])
    if done.get("runs") != these:
        done = parent.writer.call(lambda: _apply(parent, _current(parent, plan, these, finals, name, objective)))
    return Registration(dict(done["aliases"]), done["reason"])


def _current(
    parent: TrackedRun, plan: dict[str, Any], these: str, finals: Finals, name: str, objective: str
) -> dict[str, Any]:
    """Return the plan of an earlier process, if it is for these finals and no other search moved the champion since."""
    if plan.get("runs") == these and _champion(parent.store, name) in (plan["held"], plan["aliases"].get(CHAMPION)):
        return plan
    made = _plan(parent.store, finals, name, objective) | {"name": name, "runs": these}
    parent.store.client.set_tag(parent.run_id, _PLAN_TAG, json.dumps(made))
    return made


def _apply(parent: TrackedRun, plan: dict[str, Any]) -> dict[str, Any]:
    client = parent.store.client
    for alias, version in plan["aliases"].items():
        client.set_registered_model_alias(plan["name"], alias, str(version))
    client.set_tag(parent.run_id, _DONE_TAG, json.dumps(plan))
    return plan


def _plan(store: Store, finals: Finals, name: str, objective: str) -> dict[str, Any]:
    try:
        store.client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    held = _champion(store, name)
    candidate = _version(store, name, finals.best)
    aliases = {CANDIDATE: candidate}
    champion, reason = held, "nobody is champion: the documented configuration failed"
    if champion is None and finals.documented:
        champion = aliases[CHAMPION] = _version(store, name, finals.documented)
        reason = f"version {champion}, the documented configuration, is the first champion"
    if champion is not None and champion != candidate:
        verdict = _challenge(store, name, finals.best, champion, objective)
        if verdict == "better":
            aliases[CHAMPION] = candidate
            reason = f"version {candidate} is better than version {champion} on the same test images and replaces it"
        else:
            reason = f"version {champion} is champion; version {candidate} beside it: {verdict}"
    elif champion is not None and held is not None:
        reason = f"version {champion} is champion already"
    return {"held": held, "aliases": aliases, "reason": reason}


def _challenge(store: Store, name: str, best: Sequence[Run], champion: int, objective: str) -> str:
    """Return what the best is beside the champion, or why that cannot be said."""
    version = store.client.get_model_version(name, str(champion))
    run_ids = json.loads(version.tags.get(_JUDGED_TAG, json.dumps([version.run_id])))
    try:
        champions = [store.client.get_run(run_id) for run_id in run_ids]
        return judge_runs(store, best, champions, objective).verdict
    except MlflowException as err:
        if err.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return "not comparable, its runs are not in the store any more"
    except SearchError as err:
        return f"not comparable, {err}"


def _champion(store: Store, name: str) -> int | None:
    version = store.client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else int(version)


def _version(store: Store, name: str, runs: Sequence[Run]) -> int:
    """Return the version of the first seed's model, made where there is none, and say on it what was judged."""
    client, first = store.client, runs[0]
    found = client.search_model_versions(f"run_id = '{first.info.run_id}'")
    version = next((str(known.version) for known in found if known.name == name), None)
    if version is None:
        source = model_of_run(store, first.info.run_id)
        if source is None:
            raise SearchError(f"run {first.info.run_name}: its model is not in {store.uri} any more; use --restart")
        # A server takes no address of a model without being told that model's id.
        model_id = source.removeprefix("models:/")
        version = str(client.create_model_version(name, source, first.info.run_id, model_id=model_id).version)
    accuracies = [str(run.data.metrics.get("test_accuracy")) for run in runs]
    facts = {_JUDGED_TAG: json.dumps([run.info.run_id for run in runs]), "test_accuracy": accuracies[0]}
    for key, value in facts.items():
        client.set_model_version_tag(name, version, key, value)
    client.update_model_version(
        name,
        version,
        f"{first.info.run_name}: test accuracy {accuracies[0]} by itself. Verdicts about it average the probabilities "
        f"of {len(runs)} seeds (test accuracy {', '.join(accuracies)}); registered is the first, whatever it scored.",
    )
    return int(version)


def _fingerprint(runs: Sequence[Run]) -> str:
    return hashlib.sha256(" ".join(run.info.run_id for run in runs).encode()).hexdigest()[:16]
