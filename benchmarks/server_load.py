"""What a search asks of the tracking server of `deploy/`, what that server answers, and what many recorded trials cost.

    python -m benchmarks.server_load requests
    python -m benchmarks.server_load detector
    python -m benchmarks.server_load capacity --server-workers 1 --clients 1 4 16
    python -m benchmarks.server_load recorded --trials 100000

It needs PostgreSQL and the extras `server` and `dev`: the server runs here, on PostgreSQL and a small S3 server, with
its clients on the same machine. *requests*: the requests of a trial that trains nothing and leaves a small model, with
2 and with 10 epochs. *detector*: those of a trial of the documented network on small drawn faces, with 2 epochs.
*capacity*: clients that send nothing but an epoch's requests, for some seconds. *recorded*: copies of a finished trial
are written into the database, as many as asked, then the search is opened and goes on.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import psutil
import psycopg
from requests import adapters

from fakeface_lab import tune
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.search.suggest.oracle_copy import OracleCopy
from fakeface_lab.search.suggest.oracles import first_values
from fakeface_lab.tracking.runs import StoredRun, point
from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.cluster.costs import QUESTION, Cost, note_costs, read_costs
from tests.deploy.servers import TrackingServer, deployed
from tests.search.curve_work import CurveWork, Notes, open_ledger, template

__all__: list[str] = []

_CAPACITY_SECS = 15.0
_NUM_FIRST, _NUM_MORE = 3, 20


def main() -> None:
    """Measure one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["requests", "detector", "capacity", "recorded"])
    parser.add_argument("--server-workers", type=int, default=1)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--trials", type=int, default=100_000)
    options = parser.parse_args()
    with _served(options.server_workers) as (server, project):
        if options.what == "requests":
            _count_requests(project)
        elif options.what == "detector":
            _count_requests_of_detector(project)
        elif options.what == "capacity":
            _measure_capacity(project, options.clients)
        else:
            _measure_recorded(server, project, options.trials)


@contextmanager
def _served(num_workers: int) -> Iterator[tuple[TrackingServer, Path]]:
    """Start the server with this process as its client; yield it and a project folder."""
    with tempfile.TemporaryDirectory(prefix="load-") as scratch:
        project = Path(scratch, "project")
        (project / "experiments").mkdir(parents=True)
        with deployed(Path(scratch, "servers"), num_workers) as server, mock.patch.dict(os.environ, server.address):
            yield server, project


def _search(store: Store, name: str, num_trials: int, epochs: int) -> tuple[Ledger, float, float]:
    """Run or resume a search of curves in this process; return it, the seconds to open it and those to finish it."""
    started = time.monotonic()
    ledger = open_ledger(store, name)
    opened = time.monotonic()
    work = CurveWork(store.project / "trained.txt", {})
    oracle = template("random", num_trials, epochs)
    Trials(ledger, oracle, work, InlineEngine(work), Notes(), epochs=epochs, seed=3).run()
    ledger.parent.lock.release()
    return ledger, opened - started, time.monotonic() - opened


def _count_requests(project: Path) -> None:
    """Print the requests of an epoch, and of a trial beside its epochs."""
    store, path, few, many, num_trials = open_store(None, project, "load"), project / "costs.jsonl", 2, 10, 10
    note_costs(path)
    counts = []
    for epochs in (few, many):
        _search(store, f"epochs {epochs}", 1, epochs)
        parts = []
        for _ in range(2):  # with new trials, and as a search that has none left
            before = len(read_costs(path))
            _search(store, f"epochs {epochs}", 1 + num_trials, epochs)
            parts.append(Counter(cost.what for cost in read_costs(path)[before:] if cost.what != QUESTION))
        counts.append({what: (parts[0][what] - parts[1][what]) / num_trials for what in parts[0]})
    print("| request | an epoch | a trial, beside its epochs |\n|---|---|---|")
    sums = [0.0, 0.0]
    for what in sorted(set(counts[0]) | set(counts[1])):
        epoch = (counts[1].get(what, 0) - counts[0].get(what, 0)) / (many - few)
        trial = counts[0].get(what, 0) - few * epoch
        sums = [sums[0] + epoch, sums[1] + trial]
        if abs(epoch) > 0.01 or abs(trial) > 0.05:
            print(f"| {what} | {epoch:.2f} | {trial:.2f} |")
    print(f"| together | {sums[0]:.2f} | {sums[1]:.2f} |")


def _count_requests_of_detector(project: Path) -> None:
    """Print the requests of a trial: those of a search of four less those of a search of one, by three."""
    words = "--data demo --image-size 32 --epochs 2 --algorithm random --final-seeds 1 --threads 2 --engine inline"
    path, counts, sent_bytes = project / "costs.jsonl", [], []
    note_costs(path)
    with contextlib.chdir(project):
        for num_trials in (1, 4):
            before = len(read_costs(path))
            code = tune.main([*words.split(), "--trials", str(num_trials), "--name", f"trials {num_trials}"])
            assert code == 0
            costs = [cost for cost in read_costs(path)[before:] if cost.what != QUESTION]
            counts.append(Counter(cost.what for cost in costs))
            sent_bytes.append(sum(cost.num_bytes for cost in costs))
    print("| request | a trial |\n|---|---|")
    for what, count in sorted(counts[1].items()):
        print(f"| {what} | {(count - counts[0][what]) / 3:.1f} |")
    print(f"| together | {(counts[1].total() - counts[0].total()) / 3:.1f} |")
    print(f"{(sent_bytes[1] - sent_bytes[0]) / 3e6:.2f} MB sent for a trial")


def _measure_capacity(project: Path, numbers: list[int]) -> None:
    """Print the requests a second that clients get answered which send those of an epoch, one after the other."""
    store = open_store(None, project, "load")
    print("| clients | requests a second | median, ms | slowest tenth from, ms | server's CPU |\n|---|---|---|---|---|")
    for number in numbers:
        path = project / f"costs-{number}.jsonl"
        with _noted(path):
            is_over = threading.Event()
            threads = [threading.Thread(target=_write_epochs, args=(store, is_over)) for _ in range(number)]
            before, started = _cpu_secs(), time.monotonic()
            for thread in threads:
                thread.start()
            time.sleep(_CAPACITY_SECS)
            is_over.set()
            for thread in threads:
                thread.join()
            secs = time.monotonic() - started
            used = (_cpu_secs() - before) / secs
        taken = sorted(cost.secs for cost in read_costs(path))
        print(
            f"| {number} | {len(taken) / secs:.0f} | {1e3 * statistics.median(taken):.0f} "
            f"| {1e3 * taken[int(0.9 * len(taken))]:.0f} | {used:.2f} |", flush=True,
        )  # fmt: skip


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Note the costs of this process's requests within the block."""
    send = adapters.HTTPAdapter.send
    note_costs(path)
    try:
        yield
    finally:
        setattr(adapters.HTTPAdapter, "send", send)  # noqa: B010


def _cpu_secs() -> float:
    """Return the CPU seconds of this process's children: the servers."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def _write_epochs(store: Store, is_over: threading.Event) -> None:
    """Do what the driver does at the end of an epoch, again and again."""
    run = store.client.create_run(store.experiment_id)
    stored, number = StoredRun(store, PatientWriter(60), run), 0
    while not is_over.is_set():
        number += 1
        stored.read()
        metrics = {"loss": 1.0, "val_loss": 2.0, "epoch_secs": 3.0}
        stored.write(points=[point(name, value, number, number) for name, value in metrics.items()])
        stored.write(tags={"epochs_done": str(number), "num_starts": "0", "num_deaths": "0"})


def _measure_recorded(server: TrackingServer, project: Path, num_trials: int) -> None:
    """Print what it costs to open a search of that many trials and to go on."""
    store, path = open_store(None, project, "load"), project / "costs.jsonl"
    _search(store, "large", _NUM_FIRST, 4)
    _fill(server, store, num_trials)
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    note_costs(path)
    ledger, open_secs, more_secs = _search(store, "large", num_trials + _NUM_MORE, 4)
    costs = read_costs(path)
    assert len(ledger.trials) == num_trials + _NUM_MORE
    asked = [cost.secs for cost in costs if cost.what == QUESTION]
    print(f"{num_trials:,} recorded trials, {_database_bytes(server) / 1e9:.2f} GB in the database")
    print(f"opened in {open_secs:.0f} s, +{(process.memory_info().rss - before_bytes) / 1e6:.0f} MB in the driver")
    print(f"first question {asked[0]:.1f} CPU s, a further one {1e3 * statistics.median(asked[1:]):.0f} CPU ms")
    print(f"{_NUM_MORE} more trials in {more_secs:.0f} s, with the first question")
    for what in ("POST runs/log-batch", "GET runs/get", "POST runs/create", "POST runs/search"):
        print(f"{what}: median {_median_ms(costs, what):.0f} ms")


def _median_ms(costs: list[Cost], what: str) -> float:
    return 1e3 * statistics.median(cost.secs for cost in costs if cost.what == what)


def _connection(server: TrackingServer) -> "psycopg.Connection[tuple[object, ...]]":
    address = server.postgres.address
    return psycopg.connect(
        host=address["PGHOST"], port=address["PGPORT"], dbname=address["PGDATABASE"], user=address["PGUSER"],
        password=address["PGPASSWORD"],
    )  # fmt: skip


def _database_bytes(server: TrackingServer) -> int:
    with _connection(server) as database:
        row = database.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(str(row[0]))


def _fill(server: TrackingServer, store: Store, num_trials: int) -> None:
    """Write copies of the last trial, each with the values that the oracle suggests and a score of its own."""
    (source,) = store.runs(f"tags.trial = '{_NUM_FIRST - 1}'")
    oracle = template("random", num_trials + _NUM_MORE, 4)
    with OracleCopy(oracle) as copy, _connection(server) as database:
        database.execute("CREATE TEMPORARY TABLE made (number int, run_uuid text, chosen text, score text)")
        with database.cursor().copy("COPY made FROM STDIN") as rows:
            for number in range(num_trials):
                answer = copy.ask(number) if number else copy.put(0, first_values(oracle))
                copy.tell(number, 0.5)
                if number >= _NUM_FIRST:
                    rows.write_row((number, f"{number:032x}", json.dumps(answer.values), repr(0.6 + number * 1e-7)))
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            columns = database.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
                (table,),
            ).fetchall()
            names = [str(name) for (name,) in columns]
            chosen = ", ".join(_cloned(table, name) for name in names)
            listed = ", ".join(f'"{name}"' for name in names)
            statement = f"INSERT INTO {table} ({listed}) SELECT {chosen} FROM {table} one, made WHERE one.run_uuid = %s"
            database.execute(statement.encode(), (source.info.run_id,))
        database.commit()
        database.autocommit = True
        database.execute("ANALYZE")


def _cloned(table: str, column: str) -> str:
    """Return the SQL of a column in the copy of a trial."""
    if column == "run_uuid":
        return "made.run_uuid"
    if (table, column) == ("tags", "value"):
        return (
            "CASE one.key WHEN 'trial' THEN made.number::text WHEN 'values' THEN made.chosen "
            "WHEN 'created_order' THEN (2 * made.number + 1)::text WHEN 'ended_order' THEN (2 * made.number + 2)::text "
            "WHEN 'score' THEN made.score ELSE one.value END"
        )
    return f'one."{column}"'


if __name__ == "__main__":
    main()
