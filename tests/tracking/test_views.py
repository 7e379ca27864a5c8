"""What a search's saved views select, that writing them again changes nothing, and that they never end a search."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.tracking.runs import StoredRun, TrackedRun
from fakeface_lab.tracking.store import MAX_TAG_CHARS, Store, param_name
from fakeface_lab.tracking.views import save_views, view_links
from fakeface_lab.tracking.writer import PatientWriter
from tests.saved_views import VIEW_TAG, read_views

PARAMS = ["learning_rate", "units 1", "dense.units"]


@pytest.fixture
def begin(local_store: Store) -> Iterator[Callable[..., TrackedRun]]:
    """A function that opens a search, new or started over."""
    opened: list[TrackedRun] = []

    def begin(name: str, *, restart: bool = False) -> TrackedRun:
        for run in opened:
            run.lock.release()
        opened.append(open_search(local_store, PatientWriter(5), name, {}, {}, restart=restart).parent)
        return opened[-1]

    yield begin
    for run in opened:
        run.lock.release()


def tags_of(search: StoredRun) -> dict[str, str]:
    return dict(search.store.client.get_experiment(search.run.info.experiment_id).tags)


def test_both_views_show_the_trials_by_score(begin: Callable[..., TrackedRun]) -> None:
    search = begin("by hand")
    save_views(search, "val_f1", "max", PARAMS)
    views = read_views(tags_of(search))
    assert set(views) == {"Leaderboard: by hand", "Charts: by hand"}
    for view in views.values():
        assert view["createdAt"] == view["updatedAt"] == search.run.info.start_time
        state = view["state"]
        assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`score`", False)
        assert state["selectedColumns"] == [
            "metrics.`score`", "params.`learning_rate`", "params.`units 1`", "params.`dense.units`",
            "attributes.`Models`",
        ]  # fmt: skip
        parallel, curves, *scatters = state["compareRunCharts"]
        assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (PARAMS, ["score"])
        assert (curves["type"], curves["metricKey"], curves["xAxisKey"]) == ("LINE", "val_f1", "step")
        assert [chart["xaxis"] for chart in scatters] == [{"key": name, "type": "PARAM"} for name in PARAMS]
        shown = {section["uuid"] for section in state["compareRunSections"] if section["display"]}
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == shown


def test_a_smaller_score_is_first_where_it_is_better(begin: Callable[..., TrackedRun]) -> None:
    search = begin("by hand")
    save_views(search, "val_loss", "min", PARAMS)
    assert [view["state"]["orderByAsc"] for view in read_views(tags_of(search)).values()] == [True, True]


def test_conditional_hyperparameters_have_columns_but_no_axes(begin: Callable[..., TrackedRun]) -> None:
    search = begin("by hand")
    save_views(search, "val_loss", "min", PARAMS, {"units 1"})
    state = read_views(tags_of(search))["Charts: by hand"]["state"]
    assert "params.`units 1`" in state["selectedColumns"]
    assert state["compareRunCharts"][0]["selectedParams"] == ["learning_rate", "dense.units"]


@pytest.mark.parametrize("name", ["it's mine", 'the "best"', "a.b/c: 100 % [red]", "größer 🙂"])
def test_a_view_selects_the_trials_of_its_search_and_nothing_else(begin: Callable[..., TrackedRun], name: str) -> None:
    old = begin(name)
    new = begin(name, restart=True)
    client, experiment_id = new.store.client, new.store.experiment_id
    for parent in (old, new):
        for role in ("trial", "final"):
            tags = {"mlflow.parentRunId": parent.run_id, "role": role, "search": name}
            client.create_run(experiment_id, tags=tags)
    save_views(new, "val_loss", "min", [])
    for view in read_views(tags_of(new)).values():
        assert name in view["name"]
        (trial,) = client.search_runs([experiment_id], view["state"]["searchFilter"])
        assert trial.data.tags["mlflow.parentRunId"] == new.run_id
        assert trial.data.tags["role"] == "trial"


def test_written_again_nothing_changes(begin: Callable[..., TrackedRun]) -> None:
    search = begin("by hand")
    save_views(search, "val_loss", "min", PARAMS)
    first = tags_of(search)
    save_views(search, "val_loss", "min", PARAMS)
    assert tags_of(search) == first
    resumed = begin("by hand")
    save_views(resumed, "val_loss", "min", PARAMS)
    assert tags_of(search) == first


def test_a_search_that_is_started_over_replaces_the_views(begin: Callable[..., TrackedRun]) -> None:
    old, other = begin("by hand"), begin("another")
    for search in (old, other):
        save_views(search, "val_loss", "min", PARAMS)
    new = begin("by hand", restart=True)
    save_views(new, "val_loss", "min", PARAMS)
    views = read_views(tags_of(new))
    assert len(views) == sum(key.startswith(VIEW_TAG) for key in tags_of(new)) == 4
    assert new.run_id in views["Charts: by hand"]["state"]["searchFilter"]
    assert other.run_id in views["Charts: another"]["state"]["searchFilter"]
    assert view_links(old.store, old.read()) == {}


def test_links_name_the_views_in_the_store(begin: Callable[..., TrackedRun]) -> None:
    search = begin("by hand")
    assert view_links(search.store, search.run) == {}
    save_views(search, "val_loss", "min", PARAMS)
    # As a store that is opened for reading: with another experiment.
    links = view_links(replace(search.store, experiment_id="0"), search.run)
    keys = {key.removeprefix(VIEW_TAG) for key in tags_of(search) if key.startswith(VIEW_TAG)}
    leaderboard, charts = sorted(keys, reverse=True)
    table = f"{search.store.runs_link()}&viewStateShareKey="
    assert links == {"leaderboard": table + leaderboard, "charts": f"{table}{charts}&compareRunsMode=CHART"}


def long_name(number: int) -> str:
    return "".join(hashlib.sha256(f"{number} {part}".encode()).hexdigest() for part in range(2))


@pytest.mark.parametrize("params", [[f"units_of_layer_{number}" for number in range(60)],
                                    [long_name(number) for number in range(60)]], ids=["short", "long"])  # fmt: skip
def test_sixty_hyperparameters_get_as_many_columns_as_fit(begin: Callable[..., TrackedRun], params: list[str]) -> None:
    search = begin("n" * 1000)
    save_views(search, "val_loss", "min", params)
    values = [value for key, value in tags_of(search).items() if key.startswith(VIEW_TAG)]
    assert max(map(len, values)) <= MAX_TAG_CHARS
    for view in read_views(tags_of(search)).values():
        columns = view["state"]["selectedColumns"][1:-1]
        assert columns == [f"params.`{name}`" for name in params[: len(columns)]]
        assert len(columns) == 60 if params[0].startswith("units") else 20 < len(columns) < 60
        assert [chart["type"] for chart in view["state"]["compareRunCharts"]] == ["PARALLEL", "LINE", *["SCATTER"] * 6]
        assert len(view["state"]["compareRunCharts"][0]["selectedParams"]) == 12


def test_a_refusal_is_told_and_ends_nothing(local_store: Store) -> None:
    told: list[str] = []
    search = open_search(local_store, PatientWriter(5, told.append), "by hand", {}, {}, restart=False).parent
    local_store.client.delete_experiment(local_store.experiment_id)
    save_views(search, "val_loss", "min", PARAMS)
    (line,) = told
    assert line.startswith("MLflow's page has no saved views of this search: tracking store refused: ")
    assert "must be in the 'active' state" in line
    assert view_links(local_store, search.run) == {}
    search.lock.release()


def test_a_store_without_an_answer_ends_nothing(begin: Callable[..., TrackedRun], tmp_path: Path) -> None:
    search = begin("by hand")
    uri = "http://127.0.0.1:9"
    away = replace(search.store, uri=uri, client=MlflowClient(uri))
    told: list[str] = []
    save_views(StoredRun(away, PatientWriter(0, told.append), search.run), "val_loss", "min", PARAMS)
    assert "MLflow's page has no saved views of this search: tracking store: unreachable" in told[-1]
    assert view_links(away, search.run) == {}


def test_a_parameter_has_only_characters_that_mlflow_takes(begin: Callable[..., TrackedRun]) -> None:
    search = begin("by hand")
    names = ["rate (log)", "it's `this`", "größe", "a/b:c d.e-f"]
    assert [param_name(name) for name in names] == ["rate _log_", "it_s _this_", "größe", "a/b:c d.e-f"]
    search.log_params({param_name(name): 1 for name in names})
    assert set(search.read().data.params) == {param_name(name) for name in names}
