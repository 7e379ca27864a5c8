"""Where images come from: the documented Kaggle set, the drawn demo faces, or a folder with two class folders.

Owns the order of the classes: the class to detect has index 0 (documented labels: fake 0, real 1), whatever the sort
order of the folder names.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from fakeface_lab.data.demo import DRAWING_VERSION, generate_demo
from fakeface_lab.errors import DataError

__all__ = [
    "DOCUMENTED_NAME",
    "KAGGLE_HANDLE",
    "ImageFile",
    "Source",
    "cache_folder",
    "find_source",
    "list_files",
]

DOCUMENTED_NAME = "hardfakevsrealfaces"
KAGGLE_HANDLE = "hamzaboulahia/hardfakevsrealfaces"

# Folder names that tell which class is to be detected (left) and which is not (right).
# The second pair is that of CNNDetection, UniversalFakeDetect and SIDBench.
KNOWN_CLASS_NAMES = (("fake", "real"), ("1_fake", "0_real"))

_CHUNK_NUM_FILES = 256  # hashed at a time

DEMO_NOTICE = (
    "DEMO DATA: these are drawn faces, used because no real images were found. No figure of this run says anything "
    "about photographs or compares with the documented one. For the real images, see 'The documented CNN on the real "
    "images' in the README."
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of a data set.

    Attributes:
        path: absolute path on this machine.
        name: path below the data set's root, with `/`; the same on all machines.
        label: class index, 0 for the class to detect.
        sha256: of the file's bytes, hexadecimal; empty if the file cannot be read.
    """

    path: Path
    name: str
    label: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A data set on disk, before any file is opened.

    Attributes:
        name: short name, used as the experiment's name.
        root: absolute folder that contains the class folders.
        class_names: the class to detect first.
        class_folders: folder of each class, in the same order.
        notice: a warning about this source for the user, or None.
    """

    name: str
    root: Path
    class_names: tuple[str, str]
    class_folders: tuple[Path, Path]
    notice: str | None = None

    @property
    def is_documented(self) -> bool:
        """Whether figures from it may be compared with the documented ones."""
        return self.name == DOCUMENTED_NAME


def cache_folder() -> Path:
    """Return the folder for decoded pixels and demo faces: `FAKEFACE_CACHE`, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("FAKEFACE_CACHE") or platformdirs.user_cache_dir("fakeface_lab")).absolute()


def find_source(data: str, positive: str | None, project: Path, demo_size_px: int) -> Source:
    """Return the data set that `--data` names.

    Args:
        data: `auto`, `hardfakevsrealfaces`, `demo`, or a folder. `auto` tries `data/hardfakevsrealfaces` in the
            project, Kaggle's cache, a download, and the demo faces, in this order.
        positive: name of the class folder to detect; None if the names tell.
        project: the project folder.
        demo_size_px: edge of the demo faces, which are drawn at the model's size.

    Raises:
        DataError: the folder is missing, does not have exactly two class folders, or its names do not tell which class
            is to be detected.
    """
    if data == "demo":
        return _demo_source(demo_size_px, positive, notice=None)
    if data in ("auto", DOCUMENTED_NAME):
        try:
            # Only the search may end in the demo faces; a wrong --positive on the real images is an error.
            root = _documented_folder(project)
        except DataError:
            if data == "auto":
                return _demo_source(demo_size_px, positive, notice=DEMO_NOTICE)
            raise
        return _folder_source(root, DOCUMENTED_NAME, positive)
    root = Path(data).expanduser()
    # Not `is_dir()`, which raises if the name is longer than the system allows.
    if not os.path.isdir(root):  # noqa: PTH112
        shown = data if len(data) <= 200 else data[:197] + "..."
        raise DataError(
            f"--data {shown}: no such folder; give auto, {DOCUMENTED_NAME}, demo, or a folder with two class folders"
        )
    # Its last part names the experiment, and that of `.` is empty.
    root = root.resolve()
    return _folder_source(root, root.name, positive)


def list_files(source: Source) -> list[ImageFile]:
    """Return every file of both classes, the class to detect first, names sorted as strings.

    Hidden files are left out. A file that cannot be read gets an empty hash, and decoding it reports the reason.
    """
    found = [(path, label) for label, folder in enumerate(source.class_folders) for path in _walk(folder)]
    files: list[ImageFile] = []
    with ThreadPoolExecutor() as threads:
        # In chunks, because `map` keeps 1.5 kB for each file that waits for its turn.
        for first in range(0, len(found), _CHUNK_NUM_FILES):
            chunk = found[first : first + _CHUNK_NUM_FILES]
            # Threads suffice, because reading and hashing release the interpreter's lock.
            for (path, label), sha256 in zip(chunk, threads.map(_sha256, (path for path, _ in chunk)), strict=True):
                files.append(ImageFile(path, path.relative_to(source.root).as_posix(), label, sha256))
    return files


def _walk(folder: Path) -> Iterator[Path]:
    # Broken links are listed too, so that they count among the skipped files.
    paths = (path for path in folder.rglob("*") if path.is_file() or (path.is_symlink() and not path.exists()))
    # Hidden files are those of the system and of other programs, such as `.DS_Store`.
    visible = (path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    # As strings, so fake_10 before fake_2: the documented split shuffles the files in this order.
    yield from sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _demo_source(size_px: int, positive: str | None, notice: str | None) -> Source:
    root = generate_demo(cache_folder() / f"demo-{size_px}px-v{DRAWING_VERSION}", size_px=size_px)
    source = _folder_source(root, "demo", positive)
    return replace(source, notice=notice)


def _documented_folder(project: Path) -> Path:
    local = project / "data" / DOCUMENTED_NAME
    if local.is_dir():
        return local
    return _cached_download() or _download()


def _cached_download() -> Path | None:
    """Return the newest complete version in Kaggle's cache, or None.

    kagglehub itself asks the network for the newest version first, so that offline it does not find its own cache.
    """
    from kagglehub.config import get_cache_folder

    folder = Path(get_cache_folder(), "datasets", *KAGGLE_HANDLE.split("/"))
    # As numbers, or 9 would be newer than 11. An interrupted download leaves a folder without a marker.
    versions = [int(marker.stem) for marker in folder.glob("*.complete") if marker.stem.isdecimal()]
    found = (folder / "versions" / str(version) for version in sorted(versions, reverse=True))
    return next((version for version in found if version.is_dir()), None)


def _download() -> Path:
    import kagglehub

    try:
        # Tried even offline, where it fails within 0.3 s.
        return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except Exception as err:  # kagglehub raises its own errors, those of requests and OS errors: no common base class
        raise DataError(
            f"{DOCUMENTED_NAME}: not under data/{DOCUMENTED_NAME}, and the download from Kaggle failed "
            f"({type(err).__name__}); download {KAGGLE_HANDLE} from kaggle.com by hand, unpack it there, or use "
            f"--data demo"
        ) from err


def _folder_source(root: Path, name: str, positive: str | None) -> Source:
    root, folders = _class_folders(root, positive)
    class_names = _class_names(root, list(folders), positive)
    first, second = (folders[class_name] for class_name in class_names)
    return Source(name, root, class_names, (first, second))


def _class_folders(root: Path, positive: str | None) -> tuple[Path, dict[str, Path]]:
    """Return the folder that contains the class folders, `root` or the only folder in it, and these by name."""
    folders = _visible_folders(root)
    if len(folders) == 1:
        (only,) = folders.values()
        inner = _visible_folders(only)
        # A single class folder may contain folders too; one level down only known class names count.
        if _known_order(list(inner)) or positive in inner:
            return only, inner
    return root, folders


def _visible_folders(root: Path) -> dict[str, Path]:
    try:
        paths = sorted(root.iterdir())
    except OSError as err:
        raise DataError(f"{root}: cannot be listed ({err.strerror}); check its permissions") from err
    return {path.name: path for path in paths if path.is_dir() and not path.name.startswith(".")}


def _class_names(root: Path, names: list[str], positive: str | None) -> tuple[str, str]:
    if len(names) != 2:
        listed = ", ".join(names) or "none"
        raise DataError(f"{root}: two class folders are needed, such as fake/ and real/; found {len(names)}: {listed}")
    first, second = names
    if positive is not None:
        if positive not in names:
            raise DataError(f"--positive {positive}: no such class folder in {root}; there are {first} and {second}")
        return (positive, second if positive == first else first)
    order = _known_order(names)
    if order is None:
        raise DataError(f"{root}: which class is to be detected? Pass --positive {first} or --positive {second}")
    return order


def _known_order(names: list[str]) -> tuple[str, str] | None:
    """Return two folder names with the class to detect first, or None if they do not tell which that is."""
    for to_detect, other in KNOWN_CLASS_NAMES:
        by_lower_case = {name.lower(): name for name in names}
        if len(names) == 2 and by_lower_case.keys() == {to_detect, other}:
            return by_lower_case[to_detect], by_lower_case[other]
    return None
