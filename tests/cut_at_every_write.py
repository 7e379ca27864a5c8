"""Program: is a search whose process was killed after any one of its writes the same as an undisturbed one?

    python -m tests.cut_at_every_write --algorithm hyperband --engine inline --folder /tmp/cut
    python -m tests.cut_at_every_write --kind disk --when before --from 20 --to 40 --folder /tmp/cut
    python -m tests.cut_at_every_write --list --kind worker --folder /tmp/cut

A small search (or `--program baseline`) runs to its end; the others are killed at their k-th write (`write_counter`
says what counts), started again until they end, and compared with the first one in everything that they left in the
store and on disk (`search_state`). One line for each k; lines go to `results.txt` in the folder too, and a k that is
there is not tried again. `--match` kills at the first write whose line in `--list` it finds instead; given several
times, and with `--chain`, one search is killed again and again, one life each. Exit code 1: differences.

Processes are forked from one that has everything loaded (`lives`); `--cold` starts them as a user does.
"""

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.kill_search import write_project
from tests.lives import Lives, in_child, prepare
from tests.write_counter import Cut, Kind, read_log, write_hook

__all__ = ["main"]


def _state(lives: Lives, project: Path) -> Any:
    from tests.search_state import read_state

    return read_state(f"sqlite:///{project / 'mlflow.db'}", project)


def _try(lives: Lives, name: str, cuts: list[Cut], undisturbed: Any) -> list[str]:
    """Return the labels of the writes that were cut, and all differences."""
    from tests.search_state import broken_promises, differences

    def look(project: Path) -> list[str]:
        return broken_promises(undisturbed, in_child(lambda: _state(lives, project)))

    project, labels, errors = lives.run(name, cuts, look)
    found = errors + differences(undisturbed, in_child(lambda: _state(lives, project)))
    if not found:
        shutil.rmtree(project)
    if len(labels) < len(cuts):
        found.append(f"only {len(labels)} of {len(cuts)} kills: it ended before the others")
    return ["; ".join(labels), *found]


def _sweep(lives: Lives, cuts: list[list[Cut]], names: list[str], undisturbed: Any, jobs: int, results: Path) -> int:
    """Try each list of cuts, several at a time; return the number of those with differences."""
    num_bad, running = 0, dict[int, tuple[str, int, float]]()
    waiting = list(zip(names, cuts, strict=True))
    while waiting or running:
        while waiting and len(running) < jobs:
            name, these = waiting.pop(0)
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                lines = ["", "the test itself failed"]
                try:
                    lines = _try(lives, name, these, undisturbed)
                except BaseException as err:
                    lines = ["", f"the test itself failed: {err!r}"]
                finally:
                    with os.fdopen(writer, "w") as pipe:
                        pipe.write("\n".join(line.replace("\n", " ") for line in lines))
                    os._exit(0)
            os.close(writer)
            running[pid] = (name, reader, time.monotonic())
        pid, _ = os.waitpid(-1, 0)
        name, reader, began = running.pop(pid)
        with os.fdopen(reader) as pipe:
            label, *found = pipe.read().splitlines()
        num_bad += bool(found)
        verdict = f"{len(found)} differences" if found else "the same"
        text = "\n".join([f"{name} {verdict} ({time.monotonic() - began:.0f} s): {label}",
                          *(f"    {line}" for line in found)])  # fmt: skip
        print(text, flush=True)
        with results.open("a") as file:
            file.write(text + "\n")
    return num_bad


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", choices=["tune", "baseline"], default="tune")
    parser.add_argument("--algorithm", choices=["random", "grid", "bayesian", "hyperband"], default="random")
    parser.add_argument("--engine", choices=["local", "inline"], default="local")
    parser.add_argument("--trials", type=int, default=3, help="Hyperband has its own number (default 3)")
    parser.add_argument("--final-seeds", type=int, default=1, help="retrained at the end (default 1)")
    parser.add_argument("--kind", choices=["store", "disk", "worker"], default="store", help="which writes are counted")
    parser.add_argument("--when", choices=["before", "after"], default="after", help="killed before or after the write")
    parser.add_argument("--with-driver", action="store_true", help="kind worker: the driver dies with its worker")
    parser.add_argument("--from", type=int, default=1, dest="first", help="first write (default 1)")
    parser.add_argument("--to", type=int, default=0, dest="last", help="last write; default: of an undisturbed life")
    parser.add_argument("--every", type=int, default=1, help="step (default 1)")
    parser.add_argument("--sample", type=int, default=0, help="that many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of --sample (default 0)")
    parser.add_argument("--match", action="append", help="regular expression for the write, instead of a number")
    parser.add_argument("--chain", action="store_true", help="kill one search at all of them, one life after the other")
    parser.add_argument("--list", action="store_true", help="print the writes of an undisturbed life and end")
    parser.add_argument("--cold", action="store_true", help="start each life as a user does")
    parser.add_argument("--jobs", type=int, default=1, help="searches at the same time (default 1)")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    return parser.parse_args(argv)


def _lives(given: argparse.Namespace, folder: Path) -> Lives:
    images = folder / "data"
    if not images.exists():
        write_project(images, given.algorithm, 1, given.final_seeds, given.trials)
    words = ["--data", str(images / "images"), "--image-size", "24", "--epochs", "2", "--threads", "1"]
    resumed = ["--resume"]
    if given.program == "tune":
        words, resumed = ["--config", str(images / "search.toml"), "--epochs", "2", "--engine", given.engine], []
    else:
        words += ["--hyperparameters.filters-1", "8", "--hyperparameters.dense-units", "8", "--split", "sealed"]
    return Lives(given.program, words, resumed, folder, write_hook(folder / "hook"), given.cold)


def _run(given: argparse.Namespace, folder: Path) -> int:
    prepare(folder)
    lives = _lives(given, folder)
    kind: Kind = given.kind
    began = time.monotonic()
    project, _, errors = lives.run("undisturbed", [Cut(kind, 0, "after", "", "")])
    if errors:
        raise RuntimeError(f"the undisturbed search: {errors}")
    writes = read_log(project / "log-writes")
    if given.list:
        print("\n".join(writes))
        return 0
    undisturbed = in_child(lambda: _state(lives, project))
    print(f"{given.program} {given.algorithm} {given.engine}: {len(writes)} writes ({kind}), "
          f"{time.monotonic() - began:.1f} s a life", flush=True)  # fmt: skip
    cut = Cut(kind, 1, given.when, "", "", given.with_driver)
    numbers = list(range(given.first, (given.last or len(writes)) + 1, given.every))
    if given.sample:
        numbers = sorted(random.Random(given.seed).sample(numbers, min(given.sample, len(numbers))))
        print(f"seed {given.seed}: {numbers}", flush=True)
    cuts = [[replace(cut, at=number)] for number in numbers]
    names = [f"{given.program}-{given.algorithm}-{given.engine}-{kind}-{given.when}-{number}" for number in numbers]
    if given.match:
        cuts = [[replace(cut, match=match)] for match in given.match]
        names = [re.sub(r"\W+", "-", match) for match in given.match]
    if given.chain:
        cuts, names = [[cut for one in cuts for cut in one]], ["chain"]
    results = folder / "results.txt"
    done = {line.split()[0] for line in read_log(results) if not line.startswith(" ") and line}
    todo = [(these, name) for these, name in zip(cuts, names, strict=True) if name not in done]
    num_bad = _sweep(lives, [these for these, _ in todo], [name for _, name in todo], undisturbed, given.jobs, results)
    print(f"{len(todo)} tried, {num_bad} with differences, {time.monotonic() - began:.0f} s")
    return 1 if num_bad else 0


def main(argv: list[str] | None = None) -> int:
    """Run the test that the command line describes."""
    given = _arguments(argv)
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
        return _run(given, given.folder.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        return _run(given, Path(temporary).resolve())


if __name__ == "__main__":
    sys.exit(main())
