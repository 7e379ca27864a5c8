"""Program: which files of a data set are used, which are skipped and why, and how the set would be split.

    python -m fakeface_lab.data --data my/faces    # the data card of a folder with two class folders
    python -m fakeface_lab.data --clear-cache      # delete all cached pixels

The first call decodes every file; later ones, and trainings on the same images, read the pixels from the cache.
"""

import sys

from fakeface_lab.config import find_project
from fakeface_lab.settings import DataSettings
from fakeface_lab.terminal import run_program

__all__ = ["main", "show_data"]


def show_data(settings: DataSettings) -> None:
    """Print the data card; or delete the cached pixels and print how many bytes that freed.

    Raises:
        DataError: the images cannot be found, read or split, or their cache cannot be written.
    """
    # Imported here because the printing takes seconds to load; `--help` and errors should not wait for it.
    from fakeface_lab.data.images import clear_cache, load_images
    from fakeface_lab.data.sources import cache_folder, find_source

    if settings.clear_cache:
        print(f"{clear_cache():,} bytes of cached pixels deleted from {cache_folder()}")
        return
    source = find_source(settings.data, settings.positive, find_project(), settings.image_size)
    images = load_images(source, settings.image_size)

    # Imported after the images are found, because an error about them should not wait for the printing either.
    from fakeface_lab.data.splits import make_split
    from fakeface_lab.detector.printing import print_data_card

    print_data_card(images, make_split(images, settings.split, settings.seed))


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(DataSettings, "python -m fakeface_lab.data", show_data, argv)


if __name__ == "__main__":
    sys.exit(main())
