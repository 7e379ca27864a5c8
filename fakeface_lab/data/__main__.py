"""Program: what a data set holds, what of it is used, and how it would be split.

    python -m fakeface_lab.data --data my/faces    # the card of a folder with two class folders
    python -m fakeface_lab.data --clear-cache      # delete all cached pixels

The first call decodes every file; training on the same images finds the pixels in the cache.
"""

import sys

from fakeface_lab.config import find_project
from fakeface_lab.settings import DataSettings
from fakeface_lab.terminal import run_program

__all__ = ["describe_data", "main"]


def describe_data(settings: DataSettings) -> None:
    """Print the data card; or delete the cached pixels and say how many bytes that freed.

    Raises:
        DataError: the images cannot be found, read or split, or their cache cannot be written.
    """
    # What the terminal shows takes seconds to load; `--help` and a wrong folder should not wait for it.
    from fakeface_lab.data.images import clear_cache, load_images
    from fakeface_lab.data.sources import cache_folder, find_source

    if settings.clear_cache:
        print(f"{clear_cache():,} bytes of cached pixels deleted from {cache_folder()}")
        return
    source = find_source(settings.data, settings.positive, find_project(), settings.image_size)
    images = load_images(source, settings.image_size)

    from fakeface_lab.data.splits import make_split
    from fakeface_lab.detector.printing import print_data_card

    print_data_card(images, make_split(images, settings.split, settings.seed))


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(DataSettings, "python -m fakeface_lab.data", describe_data, argv)


if __name__ == "__main__":
    sys.exit(main())
