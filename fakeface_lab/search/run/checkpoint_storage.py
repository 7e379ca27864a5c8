"""Copies of unfinished trials in a place that every machine can reach, so that a lost one costs at most an epoch."""

import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from fakeface_lab.errors import ConfigError, without_credentials
from fakeface_lab.tracking.owner import OWNERS
from fakeface_lab.training.epochs import EpochRecord, Listener

__all__ = ["CheckpointStorage"]

_PATIENCE_SECS = 600.0
_RETRY_SECS = 2.0
_PROBE = "writable"

T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointStorage:
    """A folder of a file system that fsspec knows, with one folder in it per run.

    Attributes:
        url: path or URL, such as `s3://bucket/checkpoints`; credentials come from the environment.
    """

    url: str

    @classmethod
    def open(cls, place: str, search: str) -> "CheckpointStorage":
        """Return the storage of a search in a place given by the user, once it has been seen to be writable.

        Raises:
            ConfigError: it is not, or the package for its protocol is missing.
        """
        url = f"{place.rstrip('/') if '://' in place else Path(place).absolute()}/{search}"
        try:
            files, root = _file_system(url)
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/{_PROBE}", b"")
            files.rm_file(f"{root}/{_PROBE}")
        # Each file system has errors of its own.
        except Exception as err:
            text = without_credentials(str(err).partition("\n")[0]) or type(err).__name__
            raise ConfigError(
                f"checkpoint_storage = {without_credentials(place)}: cannot be written ({text}); give a path or URL "
                f"that all nodes can write, and its credentials in the environment"
            ) from err
        return cls(url)

    def follow(self, folder: Path, listener: Listener) -> Listener:
        """Fetch what was stored of the run of this folder, and return a listener that stores each epoch of it.

        An epoch is passed on to `listener` when it is stored.
        """
        copies = _Copies(self.url, folder)
        _patiently(copies.fetch)
        return _Follower(copies, listener)

    def fetch(self, folder: Path) -> None:
        """Fetch what was stored of the run of this folder, if anything."""
        _patiently(_Copies(self.url, folder).fetch)

    def remove(self, run_id: str) -> None:
        """Delete what was stored of a run; if the storage does not answer, it stays."""
        files, root = _file_system(f"{self.url}/{run_id}")
        with suppress(Exception):  # each file system has errors of its own
            files.rm(root, recursive=True)


@dataclass
class _Follower:
    """Stores each epoch before it is passed on."""

    copies: "_Copies"
    listener: Listener

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        self.listener.step_ended(epoch, step, num_steps)

    def epoch_ended(self, record: EpochRecord) -> None:
        # The training waits: with the copying beside it, a lost machine could cost two epochs.
        _patiently(self.copies.store)
        self.listener.epoch_ended(record)


class _Copies:
    """The stored files of one run, in generations: those of the newest index that is whole.

    A generation's files are written before its index, and those of the one before are deleted after it: wherever a
    machine stops, one generation is whole. No file is replaced, as not every file system can do that atomically.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self._files, self._root = _file_system(f"{url}/{folder.name}")
        # A machine that was believed lost may still write: its files have other names.
        self._attempt = uuid.uuid4().hex[:8]
        self._generation, self._index = 0, dict[str, _Entry]()

    def fetch(self) -> None:
        """Copy the newest generation to the folder, unless it is there already."""
        self._read_index()
        for name, entry in self._index.items():
            path = self._folder / name
            if _facts(path) == entry["facts"]:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            self._files.get_file(f"{self._root}/{entry['stored']}", str(partial))
            partial.replace(path)
            # As it is here, so that it is not stored again.
            entry["facts"] = _facts(path)

    def store(self) -> None:
        """Store what has changed in the folder."""
        generation, index = self._generation + 1, dict[str, _Entry]()
        self._files.makedirs(self._root, exist_ok=True)
        files = (path for path in self._folder.rglob("*") if path.is_file() and path.suffix != ".partial")
        paths = sorted(path for path in files if path.name != OWNERS)  # each machine has its own list
        for number, path in enumerate(paths):
            name, facts = path.relative_to(self._folder).as_posix(), _facts(path)
            if name in self._index and self._index[name]["facts"] == facts:
                index[name] = self._index[name]
                continue
            index[name] = {"stored": f"{generation:06d}-{self._attempt}-{number}", "facts": facts}
            self._files.put_file(str(path), f"{self._root}/{index[name]['stored']}")
        index_name = f"{generation:06d}-{self._attempt}.json"
        self._files.pipe_file(f"{self._root}/{index_name}", json.dumps(index).encode())
        self._generation, self._index = generation, index
        used = {entry["stored"] for entry in index.values()} | {index_name}
        for unused in self._names() - used:
            self._files.rm_file(f"{self._root}/{unused}")

    def _names(self) -> set[str]:
        paths = self._files.ls(self._root, detail=False) if self._files.exists(self._root) else []
        return {str(path).rsplit("/", 1)[-1] for path in paths}

    def _read_index(self) -> None:
        """Read the newest index that is whole, and whose files are all there."""
        names = self._names()
        for name in sorted((name for name in names if name.endswith(".json")), reverse=True):
            try:
                index = json.loads(self._files.cat_file(f"{self._root}/{name}"))
            except ValueError:  # its writer was killed
                continue
            if names.issuperset(entry["stored"] for entry in index.values()):
                self._generation, self._index = int(name.partition("-")[0]), index
                return


class _Entry(TypedDict):
    """Where a file is stored, and its facts in the folder."""

    stored: str
    facts: list[int] | None


def _facts(path: Path) -> list[int] | None:
    """Return what tells a changed file: its size in bytes and its time; None if there is none."""
    if not path.exists():
        return None
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec  # only in the extra `ray`

    files, root = fsspec.url_to_fs(url, use_listings_cache=False)
    return files, str(root)


def _patiently(action: Callable[[], T]) -> T:
    """Return what the action returns; while the storage does not answer, try again for ten minutes.

    Raises:
        OSError: it did not answer.
    """
    deadline = time.monotonic() + _PATIENCE_SECS
    while True:
        try:
            return action()
        except Exception as err:  # each file system has errors of its own
            if time.monotonic() > deadline:
                text = without_credentials(str(err).partition("\n")[0])
                raise OSError(f"checkpoint storage: {text or type(err).__name__}") from err
        time.sleep(_RETRY_SECS)
