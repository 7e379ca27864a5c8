"""A name means one run: searches before runs, never a superseded search, and nothing ambiguous."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fakeface_lab.errors import ModelError, NotFoundError
from fakeface_lab.tracking.duplicates import KEY_TAG
from fakeface_lab.tracking.lookup import find_latest, find_model, find_run, get_run, open_for_models
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from tests.tracked_model_store import TrackedProject
from tests.tracking.made_runs import make_run


def named(store: Store, name: str, **tags: str) -> str:
    return TrackedRun.create(store, PatientWriter(5), name, tags).run_id


def with_model(store: Store, name: str) -> str:
    """Return the id of a run that has logged a model without the files that make it loadable."""
    run_id = named(store, name)
    model = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=run_id)
    store.client.finalize_logged_model(model.model_id, "READY")
    return run_id


def test_a_search_comes_before_runs_of_its_name_and_superseded_ones_are_not_meant(local_store: Store) -> None:
    old = named(local_store, "s", role="search", search="s", superseded_by="1")
    new = named(local_store, "renamed", role="search", search="s")
    named(local_store, "s", role="evaluation")
    assert find_run(local_store, "s").info.run_id == new
    assert find_run(local_store, old).info.run_id == old, "by its id it is found"


@pytest.mark.parametrize("name", ["bob's search", 'the "best"', "a.b/c: 100 % [red]"])
def test_a_run_of_any_name_is_found(local_store: Store, name: str) -> None:
    run_id, search_id = named(local_store, name), named(local_store, "renamed", role="search", search=f"all of {name}")
    assert find_run(local_store, name).info.run_id == run_id
    assert find_run(local_store, f"all of {name}").info.run_id == search_id


def test_an_ambiguous_name_is_refused_with_the_ids_newest_first(local_store: Store) -> None:
    elsewhere = replace(local_store, experiment_id=local_store.client.create_experiment("other"))
    first, second = named(local_store, "twice"), named(elsewhere, "twice")
    with pytest.raises(NotFoundError, match=f"twice: 2 runs have that name; .*newest first: {second}, {first}$"):
        find_run(local_store, "twice")


def test_runs_that_a_lost_answer_has_doubled_are_one(local_store: Store) -> None:
    client = local_store.client
    for tags in ({}, {"role": "baseline"}):
        client.create_run(local_store.experiment_id, tags={KEY_TAG: "k", "mlflow.runName": "doubled", **tags})
    assert find_run(local_store, "doubled").data.tags["role"] == "baseline"


def test_a_name_of_a_model_means_the_only_run_that_has_one(local_store: Store) -> None:
    first = with_model(local_store, "m")
    bare = named(local_store, "m")
    with pytest.raises(NotFoundError, match="2 runs have that name"):
        find_run(local_store, "m")
    # It is taken, and has no files here.
    with pytest.raises(NotFoundError, match=r"models:/m-\w+: no such model"):
        find_model(local_store, "m")
    second = with_model(local_store, "m")
    with pytest.raises(NotFoundError, match=f"m: 2 runs have that name; .*newest first: {second}, {first}$"):
        find_model(local_store, "m")
    with pytest.raises(ModelError, match="this run has logged no model; name a run that has one"):
        find_model(local_store, bare)


def test_what_is_not_there(local_store: Store, tmp_path: Path) -> None:
    named(local_store, "baseline one")
    for find in (find_run, find_model):
        with pytest.raises(NotFoundError, match=r"basline one: no .* of that name in .*; did you mean baseline one\?"):
            find(local_store, "basline one")
    with pytest.raises(NotFoundError, match="f{32}: no such run in " + re.escape(local_store.uri)):
        get_run(local_store, "f" * 32)


def test_the_latest_is_the_newest_with_the_same_facts(local_store: Store, writer: PatientWriter) -> None:
    assert find_latest(local_store, "f1") is None
    make_run(local_store, writer, "other facts", fingerprint="f2").end("KILLED")
    for name, status in (("older", "FAILED"), ("newer", "KILLED"), ("newest", "FINISHED")):
        make_run(local_store, writer, name, fingerprint="f1").end(status)
        found = find_latest(local_store, "f1")
        assert found is not None
        assert found.info.run_name == name
        time.sleep(0.01)
    make_run(local_store, writer, "hopeless", fingerprint="f1").end("FAILED", "training diverged: loss became nan")
    found = find_latest(local_store, "f1")
    assert found is not None
    assert found.info.run_name == "newest"


def test_model_has_many_names(tracked: TrackedProject) -> None:
    store = open_for_models(None, tracked.project)
    address = find_model(store, "tiny").uri
    store.client.create_registered_model("faces")
    version = store.client.create_model_version("faces", address, tracked.run_id).version
    store.client.set_registered_model_alias("faces", "champion", version)
    for word in (tracked.run_id, "tiny", address, f"models:/faces/{version}", "faces@champion", "champion"):
        found = find_model(store, word)
        assert found.run.info.run_id == tracked.run_id, word
        assert found.metadata["class_names"] == ["fake", "real"], word
        assert found.store.experiment_name == "images", word
    store.client.create_registered_model("others")
    other = store.client.create_model_version("others", address, tracked.run_id).version
    store.client.set_registered_model_alias("others", "champion", other)
    with pytest.raises(Exception, match="2 registered models have this alias; give faces@champion or another"):
        find_model(store, "champion")


def test_an_alias_beyond_the_first_page_of_models_is_found(local_store: Store) -> None:
    run_id = with_model(local_store, "m")
    names = [f"model {number:03d}" for number in range(101)]  # MLflow's page has 100
    for name in names:
        local_store.client.create_registered_model(name)
    version = local_store.client.create_model_version(names[-1], f"runs:/{run_id}/model", run_id)
    local_store.client.set_registered_model_alias(names[-1], "newest", version.version)
    with pytest.raises(NotFoundError, match="model 100@newest"):  # found, but it has no files here
        find_model(local_store, "newest")
