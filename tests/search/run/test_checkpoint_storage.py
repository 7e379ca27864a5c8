"""Copies of unfinished trials: generations, interrupted writers, and machines that were believed lost."""

import json
from pathlib import Path

import pytest

from fakeface_lab.search.run import checkpoint_storage
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.training.epochs import EpochRecord


class Silent:
    def step_ended(self, epoch: int, step: int, num_steps: int) -> None: ...

    def epoch_ended(self, record: EpochRecord) -> None: ...


@pytest.fixture
def storage(tmp_path: Path) -> CheckpointStorage:
    return CheckpointStorage.open(str(tmp_path / "storage"), "search")


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def epoch(number: int) -> EpochRecord:
    return EpochRecord(number, 0, {"loss": 1.0})


def stored(storage: CheckpointStorage) -> list[Path]:
    return sorted(Path(storage.url, "run").iterdir())


def test_another_machine_finds_the_last_stored_epoch(storage: CheckpointStorage, tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    listener = storage.follow(here, Silent())
    write(here, checkpoint="1", kept="1", execution__outcome="whole", half__partial="not whole")
    (here / "half.partial").write_text("not whole")
    listener.epoch_ended(epoch(1))
    write(here, checkpoint="22")
    listener.epoch_ended(epoch(2))
    write(here, checkpoint="lost with its machine")
    storage.fetch(there)
    assert read(there) == {"checkpoint": "22", "kept": "1", "execution/outcome": "whole", "half/partial": "not whole"}
    # Of each file one copy, and one index.
    assert len(stored(storage)) == 5
    storage.remove("run")
    storage.fetch(tmp_path / "nowhere" / "run")
    assert not (tmp_path / "nowhere").exists()


def test_whose_a_folder_is_stays_with_its_machine(storage: CheckpointStorage, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write(folder, checkpoint="1", owners="first")
    storage.follow(folder, Silent()).epoch_ended(epoch(1))
    write(folder, owners="first\nsecond")
    storage.follow(folder, Silent())
    assert read(folder) == {"checkpoint": "1", "owners": "first\nsecond"}


def test_a_writer_that_was_killed_leaves_the_epoch_before(storage: CheckpointStorage, tmp_path: Path) -> None:
    here = tmp_path / "here" / "run"
    listener = storage.follow(here, Silent())
    write(here, checkpoint="1")
    listener.epoch_ended(epoch(1))
    torn = Path(storage.url, "run", "000002-ffffffff.json")
    torn.write_text('{"checkpoint": {"sto')
    lost = Path(storage.url, "run", "000003-ffffffff.json")
    lost.write_text(json.dumps({"checkpoint": {"stored": "000003-ffffffff-0", "facts": [1, 1]}}))
    storage.fetch(tmp_path / "there" / "run")
    assert read(tmp_path / "there" / "run") == {"checkpoint": "1"}
    resumed = storage.follow(tmp_path / "there" / "run", Silent())
    write(tmp_path / "there" / "run", checkpoint="2")
    resumed.epoch_ended(epoch(2))
    storage.fetch(tmp_path / "elsewhere" / "run")
    assert read(tmp_path / "elsewhere" / "run") == {"checkpoint": "2"}
    assert not torn.exists()


def test_what_is_the_same_is_not_copied_again(
    storage: CheckpointStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here" / "run"
    listener = storage.follow(here, Silent())
    write(here, checkpoint="1", kept="1")
    listener.epoch_ended(epoch(1))
    before = {path.name for path in stored(storage)}
    write(here, checkpoint="22")
    listener.epoch_ended(epoch(2))
    assert len(before & {path.name for path in stored(storage)}) == 1
    inode = (here / "kept").stat().st_ino
    storage.fetch(here)
    assert (here / "kept").stat().st_ino == inode


def test_a_storage_that_does_not_answer_is_waited_for(
    storage: CheckpointStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_storage, "_RETRY_SECS", 0.01)
    monkeypatch.setattr(checkpoint_storage, "_PATIENCE_SECS", 0.5)
    here, place = tmp_path / "here" / "run", Path(storage.url)
    listener = storage.follow(here, Silent())
    write(here, checkpoint="1")
    place.rename(place.with_name("away"))
    place.write_text("in its place")
    with pytest.raises(OSError, match=r"^checkpoint storage: "):
        listener.epoch_ended(epoch(1))
    place.unlink()
    listener.epoch_ended(epoch(1))
    storage.fetch(tmp_path / "there" / "run")
    assert read(tmp_path / "there" / "run") == {"checkpoint": "1"}
