"""Which folder `--data` names, which class comes first, and the errors if that is not clear."""

import os
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fakeface_lab.data.sources import DOCUMENTED_NAME, KAGGLE_HANDLE, cache_folder, find_source, list_files
from fakeface_lab.errors import DataError

MakeImages = Callable[..., Path]

SIZE_PX = 32


@pytest.fixture(autouse=True)
def kaggle_cache(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for kagglehub, behind a proxy that refuses connections, so that no test uses the network."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused.getsockname()[1]}")
    return tmp_path / "kagglehub"


def _fill(folder: Path, names: tuple[str, ...] = ("fake", "real")) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in (1, 2, 10):
            Image.new("RGB", (4, 4), (number, len(name), 0)).save(folder / name / f"{name}_{number}.jpg")
    return folder


def _kaggle_version(cache: Path, version: int, *, complete: bool = True, inner: str = "") -> Path:
    """Lay out a version as kagglehub does: the folder, and a marker if the download is complete."""
    dataset = cache.joinpath("datasets", *KAGGLE_HANDLE.split("/"))
    folder = _fill(dataset / "versions" / str(version) / inner)
    (folder / "data.csv").write_text("images_names,label\nfake_1,fake\n")
    if complete:
        (dataset / f"{version}.complete").touch()
    return folder


def test_folder_with_known_names_puts_the_class_to_detect_first(project: Path, tmp_path: Path) -> None:
    source = find_source(str(_fill(tmp_path / "set")), None, project, SIZE_PX)
    assert (source.name, source.class_names, source.notice) == ("set", ("fake", "real"), None)
    assert source.class_folders == (tmp_path / "set" / "fake", tmp_path / "set" / "real")
    assert not source.is_documented


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("0_real", "1_fake"), ("1_fake", "0_real")), (("FAKE", "Real"), ("FAKE", "Real")), (("Fake", "REAL"),) * 2],
)
def test_class_order_does_not_follow_the_sorted_names(
    project: Path, tmp_path: Path, names: tuple[str, str], expected: tuple[str, str]
) -> None:
    assert find_source(str(_fill(tmp_path / "set", names)), None, project, SIZE_PX).class_names == expected


def test_unknown_folder_names_require_positive(project: Path, tmp_path: Path) -> None:
    root = _fill(tmp_path / "set", ("cats", "dogs"))
    with pytest.raises(DataError, match="which class is to be detected\\? Pass --positive cats or --positive dogs"):
        find_source(str(root), None, project, SIZE_PX)
    assert find_source(str(root), "dogs", project, SIZE_PX).class_names == ("dogs", "cats")
    with pytest.raises(DataError, match=r"--positive birds: no such class folder in .*; there are cats and dogs"):
        find_source(str(root), "birds", project, SIZE_PX)


def test_positive_overrides_the_order_of_known_names(project: Path, tmp_path: Path) -> None:
    assert find_source(str(_fill(tmp_path / "set")), "real", project, SIZE_PX).class_names == ("real", "fake")


@pytest.mark.parametrize(
    ("names", "found"),
    [((), "found 0: none"), (("fake",), "found 1: fake"), (("fake", "real", "unsure"), "found 3: fake, real, unsure")],
)
def test_any_other_number_of_class_folders_is_refused(
    project: Path, tmp_path: Path, names: tuple[str, ...], found: str
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    _fill(root, names)
    (root / ".thumbnails").mkdir()
    (root / "data.csv").touch()
    with pytest.raises(DataError, match=f"two class folders are needed, such as fake/ and real/; {found}"):
        find_source(str(root), None, project, SIZE_PX)


def test_class_folders_one_level_down_are_found(project: Path, tmp_path: Path) -> None:
    _fill(tmp_path / "archive" / "faces")
    source = find_source(str(tmp_path / "archive"), None, project, SIZE_PX)
    assert (source.name, source.root) == ("archive", tmp_path / "archive" / "faces")
    assert list_files(source)[0].name == "fake/fake_1.jpg"
    _fill(tmp_path / "pets" / "all", ("cats", "dogs"))
    assert find_source(str(tmp_path / "pets"), "cats", project, SIZE_PX).class_names == ("cats", "dogs")


def test_folders_within_a_single_class_folder_are_not_classes(project: Path, tmp_path: Path) -> None:
    _fill(tmp_path / "set" / "fake", ("old", "young"))
    with pytest.raises(DataError, match="found 1: fake"):
        find_source(str(tmp_path / "set"), None, project, SIZE_PX)


@pytest.mark.parametrize("data", ["nowhere", "x" * 5000, "nul\0byte", ""])
def test_missing_folder_says_what_is_allowed(project: Path, data: str) -> None:
    if data == "":
        data = "file"
        (project / data).touch()
    with pytest.raises(DataError, match="no such folder; give auto, hardfakevsrealfaces, demo, or a folder") as info:
        find_source(data, None, project, SIZE_PX)
    assert len(str(info.value)) < 400


def test_files_are_listed_class_by_class_sorted_as_strings(project: Path, tmp_path: Path) -> None:
    files = list_files(find_source(str(_fill(tmp_path / "set")), None, project, SIZE_PX))
    assert [file.name for file in files] == [
        "fake/fake_1.jpg", "fake/fake_10.jpg", "fake/fake_2.jpg",
        "real/real_1.jpg", "real/real_10.jpg", "real/real_2.jpg",
    ]  # fmt: skip
    assert [file.label for file in files] == [0, 0, 0, 1, 1, 1]
    assert all(len(file.sha256) == 64 and file.path.is_file() for file in files)


def test_auto_takes_the_project_folder_first(project: Path, kaggle_cache: Path) -> None:
    _kaggle_version(kaggle_cache, 1)
    local = _fill(project / "data" / DOCUMENTED_NAME)
    for data in ("auto", DOCUMENTED_NAME):
        source = find_source(data, None, project, SIZE_PX)
        assert (source.root, source.is_documented, source.notice) == (local, True, None)


def test_kaggle_cache_is_used_without_a_network(project: Path, kaggle_cache: Path) -> None:
    newest = [_kaggle_version(kaggle_cache, version) for version in (1, 2, 10)][-1]
    _kaggle_version(kaggle_cache, 11, complete=False)  # its download was interrupted
    for data in ("auto", DOCUMENTED_NAME):
        source = find_source(data, None, project, SIZE_PX)
        assert (source.root, source.is_documented, source.notice) == (newest, True, None)
    assert len(list_files(source)) == 6


def test_cached_version_is_the_one_that_kagglehub_itself_resolves(project: Path, kaggle_cache: Path) -> None:
    import kagglehub

    folder = _kaggle_version(kaggle_cache, 3)
    assert Path(kagglehub.dataset_download(f"{KAGGLE_HANDLE}/versions/3")) == folder
    assert find_source(DOCUMENTED_NAME, None, project, SIZE_PX).root == folder


def test_kaggle_archive_with_a_folder_above_the_classes(project: Path, kaggle_cache: Path) -> None:
    folder = _kaggle_version(kaggle_cache, 1, inner="hardfakevsrealfaces")
    source = find_source(DOCUMENTED_NAME, None, project, SIZE_PX)
    assert (source.root, source.class_names) == (folder, ("fake", "real"))


def test_broken_download_without_a_network_says_what_to_do_at_once(project: Path, kaggle_cache: Path) -> None:
    _kaggle_version(kaggle_cache, 1, complete=False)
    expected = r"Kaggle failed \(\w+\); download hamzaboulahia/hardfakevsrealfaces .* or use --data demo"
    started = time.monotonic()
    with pytest.raises(DataError, match=expected) as info:
        find_source(DOCUMENTED_NAME, None, project, SIZE_PX)
    # It takes less than a second; the limit of ten still excludes waiting for a network, even on a busy machine.
    assert time.monotonic() - started < 10
    assert "\n" not in str(info.value)


def test_auto_falls_back_to_drawn_faces_with_a_notice(project: Path) -> None:
    source = find_source("auto", None, project, SIZE_PX)
    assert (source.name, source.is_documented) == ("demo", False)
    assert source.notice is not None
    assert source.notice.startswith("DEMO DATA")
    asked = find_source("demo", None, project, SIZE_PX)
    assert (asked.root, asked.notice) == (source.root, None)
    assert find_source("demo", "real", project, SIZE_PX).class_names == ("real", "fake")


def test_wrong_positive_on_the_documented_set_does_not_fall_back_to_drawn_faces(
    project: Path, kaggle_cache: Path
) -> None:
    _kaggle_version(kaggle_cache, 1)
    with pytest.raises(DataError, match="--positive deepfake: no such class folder"):
        find_source("auto", "deepfake", project, SIZE_PX)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKEFACE_CACHE", "here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("FAKEFACE_CACHE")
    assert cache_folder().name == "fakeface_lab"
    assert cache_folder().is_absolute()


def test_importing_the_module_loads_no_tensorflow() -> None:
    code = "import sys, fakeface_lab.data.sources; print('tensorflow' in sys.modules, 'kagglehub' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["False", "False"]


def test_listing_takes_little_memory_beside_its_result(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("fake", "real"):
        (root / name).mkdir(parents=True)
        for number in range(1500):
            (root / name / f"{number}.jpg").write_bytes(b"%d" % number)
    source = find_source(str(root), None, tmp_path, SIZE_PX)
    list_files(source)
    tracemalloc.start()
    files = list_files(source)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files) == 3000
    assert peak - kept < 1000 * len(files)
