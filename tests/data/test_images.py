"""Pixels equal those of Keras's loader, every bad file has its reason, the cache survives kills."""

import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fakeface_lab.data.images import ImageSet, UnusableImageError, clear_cache, decode_image, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.errors import DataError

MakeImages = Callable[..., Path]


def _picture(size: tuple[int, int] = (31, 23), mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode) if mode != "RGBA" else Image.fromarray(pixels, "RGBA")


def _load(root: Path, size_px: int = 24) -> ImageSet:
    return load_images(find_source(str(root), None, root, size_px), size_px)


def _reason(images: ImageSet, name: str) -> str:
    return {skipped.name: skipped.reason for skipped in images.skipped}[name]


FORMATS = [
    ("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGB"), ("png", "L"), ("png", "LA"), ("png", "RGBA"),
    ("png", "P"), ("png", "1"), ("gif", "P"), ("bmp", "RGB"), ("webp", "RGB"), ("webp", "RGBA"), ("tiff", "RGB"),
    ("tiff", "CMYK"), ("tiff", "LAB"), ("tiff", "YCbCr"),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(FORMATS),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    target=st.sampled_from([1, 24, 37, 300]),
    orientation=st.sampled_from([1, 1, 6, 3]),
    seed=st.integers(0, 9),
)
@example(kind=("tiff", "CMYK"), width=7, height=5, target=24, orientation=6, seed=0)
def test_pixels_are_those_of_keras_load_img(
    tmp_path_factory: pytest.TempPathFactory,
    kind: tuple[str, str], width: int, height: int, target: int, orientation: int, seed: int,
) -> None:  # fmt: skip
    from fakeface_lab.backend import keras

    path = tmp_path_factory.mktemp("one") / f"picture.{kind[0]}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif} if kind[0] in ("jpg", "png", "webp", "tiff") else {}
    _picture((width, height), kind[1], seed).save(path, **options)
    pixels, remarks = decode_image(path, target)
    expected = keras.utils.img_to_array(keras.utils.load_img(path, target_size=(target, target)))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    assert ("EXIF orientation ignored, as the documented loader does" in remarks) == (
        orientation != 1 and bool(options) and kind[0] != "tiff"
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_reported(tmp_path: Path, mode: str) -> None:
    _picture(mode=mode).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png", 8)[1] == ["alpha channel dropped"]


def test_palette_is_used_and_its_transparency_is_reported(tmp_path: Path) -> None:
    _picture().convert("P").save(tmp_path / "plain.png")
    assert decode_image(tmp_path / "plain.png", 8)[1] == []
    _picture().convert("P").save(tmp_path / "clear.png", transparency=0)
    assert decode_image(tmp_path / "clear.png", 8)[1] == ["alpha channel dropped"]


def test_cmyk_is_used_and_reported(tmp_path: Path) -> None:
    _picture(mode="CMYK").save(tmp_path / "a.jpg")
    assert decode_image(tmp_path / "a.jpg", 8)[1] == ["CMYK converted without its colour profile"]


def test_sixteen_bit_gray_and_float_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "gray.png")
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "float.tiff")
    for name in ("gray.png", "float.tiff"):
        with pytest.raises(UnusableImageError, match="more than 8 bits per channel: convert it to 8 bits first"):
            decode_image(tmp_path / name, 9)


def test_sixteen_bit_colour_keeps_its_upper_bytes(tmp_path: Path) -> None:
    from fakeface_lab.backend import tf

    values = np.random.default_rng(0).integers(0, 2**16, (9, 9, 3), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(tf.io.encode_png(tf.constant(values)).numpy())
    pixels, remarks = decode_image(tmp_path / "deep.png", 9)
    np.testing.assert_array_equal(pixels, values >> 8)
    assert remarks == ["16 bits per channel reduced to the upper 8"]


def test_animations_and_multi_page_files_are_refused(tmp_path: Path) -> None:
    frames = [_picture(seed=seed) for seed in range(3)]
    for name in ("a.gif", "a.tiff", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(UnusableImageError, match="animated or several pages: it is unclear which frame to use"):
            decode_image(tmp_path / name, 9)


def test_photograph_with_previews_gives_its_first_picture(tmp_path: Path) -> None:
    _picture(seed=1).save(tmp_path / "a.mpo", save_all=True, append_images=[_picture(seed=2)])
    _picture(seed=1).save(tmp_path / "first.jpg")
    pixels, remarks = decode_image(tmp_path / "a.mpo", 9)
    np.testing.assert_array_equal(pixels, decode_image(tmp_path / "first.jpg", 9)[0])
    assert remarks == ["first picture of a multi-picture file taken"]


@pytest.mark.parametrize("factor", [1.5, 3])
def test_bomb_is_refused_between_and_above_both_of_pillows_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    _picture((30, 30)).save(tmp_path / "a.png")
    decode_image(tmp_path / "a.png", 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(900 / factor))
    actions: tuple[Literal["ignore", "error"], ...] = ("ignore", "error")
    for action in actions:
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            with pytest.raises(UnusableImageError, match="too many pixels"):
                decode_image(tmp_path / "a.png", 8)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from([kind for kind in FORMATS if kind != ("tiff", "LAB")]))
def test_damaged_bytes_give_pixels_or_a_reason_but_no_other_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: tuple[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind[0]}"
    _picture(mode=kind[1]).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(UnusableImageError):
            assert decode_image(path, 8)[0].shape == (8, 8, 3)


@pytest.fixture
def messy(make_images: MakeImages) -> Path:
    """A data set with one of each kind of bad file in its class `fake`."""
    root = make_images(num_per_class=6)
    fake, real = root / "fake", root / "real"
    buffer = io.BytesIO()
    _picture((60, 60)).save(buffer, "JPEG")
    (fake / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (fake / "notes.txt").write_text("no image")
    (fake / "zero.png").touch()
    (fake / "dangling.png").symlink_to(root / "nowhere.png")
    (fake / ".hidden.png").write_bytes(b"no image")
    (fake / ".cache").mkdir()
    (fake / ".cache" / "thumb.png").write_bytes(b"no image")
    (fake / "nested" / "deeper").mkdir(parents=True)
    _picture(seed=1).save(fake / "nested" / "deeper" / "picture.png")
    _picture(seed=2).save(fake / ("ü名前" + "n" * 230 + ".png"))
    (fake / "copy.png").write_bytes((fake / "fake_0.png").read_bytes())
    _picture(seed=3).save(fake / "both.png")
    (real / "both_too.png").write_bytes((fake / "both.png").read_bytes())
    Image.open(real / "real_0.png").save(real / "real_0_as.bmp")
    return root


def test_every_bad_file_is_counted_with_its_reason(messy: Path, project: Path) -> None:
    images = _load(messy)
    assert {skipped.name: skipped.reason for skipped in images.skipped} == {
        "fake/truncated.jpg": "truncated or damaged",
        "fake/notes.txt": "not an image",
        "fake/zero.png": "empty file",
        "fake/dangling.png": "broken link",
        "fake/both.png": "the same file lies in both classes",
        "real/both_too.png": "the same file lies in both classes",
    }
    assert images.remarks == {"copy of another file of the same class": 1}
    assert images.class_counts() == {"fake": 9, "real": 7}  # the re-encoded real_0 is another file and is used
    names = [file.name for file in images.files]
    assert "fake/nested/deeper/picture.png" in names
    assert any("名前" in name for name in names)
    assert not any("hidden" in name or ".cache" in name for name in names)
    assert not any(part.startswith(".") for skipped in images.skipped for part in skipped.name.split("/"))


def test_rows_belong_to_their_files_whatever_was_skipped(messy: Path, project: Path) -> None:
    images = _load(messy, 10)
    assert images.pixels.shape == (16, 10, 10, 3)
    assert images.labels.tolist() == [0] * 9 + [1] * 7
    for file, pixels, label in zip(images.files, images.pixels, images.labels, strict=True):
        np.testing.assert_array_equal(pixels, decode_image(file.path, 10)[0])
        assert file.label == label == (0 if file.name.startswith("fake/") else 1)


def test_name_that_is_not_utf8_is_used(make_images: MakeImages, project: Path) -> None:
    root = make_images(num_per_class=2)
    name = os.fsdecode(b"caf\xe9.png")
    os.rename(root / "fake" / "fake_0.png", root / "fake" / name)  # noqa: PTH104
    images = _load(root)
    assert images.files[0].name == f"fake/{name}"
    assert len(images.digest) == 64


@pytest.mark.parametrize("content", [None, b"no image"])
def test_class_without_a_usable_image_is_refused(make_images: MakeImages, project: Path, content: bytes | None) -> None:
    root = make_images(num_per_class=2)
    for path in (root / "real").iterdir():
        path.unlink() if content is None else path.write_bytes(content)
    expected = r"class real has no usable image in real/ \((0|2) files seen\); both classes are needed"
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(DataError, match=expected):
            _load(root)


def test_second_load_reads_the_cache_and_a_changed_file_makes_another_entry(
    make_images: MakeImages, project: Path
) -> None:
    root = make_images(num_per_class=3)
    first, again, smaller = _load(root), _load(root), _load(root, 12)
    assert first.cache_path == again.cache_path != smaller.cache_path
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert not first.pixels.flags.writeable
    assert first.digest == smaller.digest
    picture = root / "real" / "real_1.png"
    _picture((24, 24), seed=9).save(picture)
    changed = _load(root)
    assert changed.cache_path != first.cache_path
    assert changed.digest != first.digest
    np.testing.assert_array_equal(changed.pixels[4], np.asarray(Image.open(picture)))
    np.testing.assert_array_equal(np.delete(changed.pixels, 4, 0), np.delete(first.pixels, 4, 0))


def test_entry_does_not_depend_on_where_the_folder_is(make_images: MakeImages, project: Path, tmp_path: Path) -> None:
    root = make_images(num_per_class=3)
    first = _load(root)
    moved = root.rename(tmp_path / "elsewhere")
    assert _load(moved).cache_path == first.cache_path
    assert _load(moved).files[0].path == moved / "fake" / "fake_0.png"


def test_clear_cache_deletes_all_pixels_and_counts_bytes(make_images: MakeImages, project: Path) -> None:
    images = _load(make_images(num_per_class=3))
    folder = images.cache_path.parent
    expected = sum(path.stat().st_size for path in folder.iterdir())
    (folder.parent / "killed.partial").mkdir()
    (folder.parent / "killed.partial" / "pixels.npy").write_bytes(b"12345")
    (folder.parent / "killed.lock").touch()
    assert clear_cache() == expected + 5
    assert not list(folder.parent.rglob("*.npy"))
    assert clear_cache() == 0
    np.testing.assert_array_equal(images.pixels[0].shape, (24, 24, 3))  # open maps stay readable


def test_cache_folder_that_cannot_be_written_gives_one_line(
    make_images: MakeImages, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "file").touch()
    monkeypatch.setenv("FAKEFACE_CACHE", str(project / "file"))
    with pytest.raises(DataError, match=r"cannot be written \(.+\); set FAKEFACE_CACHE to a folder that can") as info:
        _load(make_images(num_per_class=2))
    assert "\n" not in str(info.value)


def test_damaged_entry_says_how_to_delete_it(make_images: MakeImages, project: Path) -> None:
    root = make_images(num_per_class=2)
    path = _load(root).cache_path
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"is damaged .*--clear-cache"):
        _load(root)


def test_pixels_that_outgrow_the_disk_are_refused_beforehand(make_images: MakeImages, project: Path) -> None:
    with pytest.raises(DataError, match=r"GB free, the pixels need 48000.0 GB; make room"):
        _load(make_images(num_per_class=2), 2_000_000)


LOADER = """
import sys, time
from pathlib import Path
from fakeface_lab.data import images
from fakeface_lab.data.sources import find_source
decode = images.decode_image
def slow(path, size_px):
    time.sleep(float(sys.argv[2]))
    sys.stdout.write("decoded\\n")
    sys.stdout.flush()
    return decode(path, size_px)
images.decode_image = slow
root = Path(sys.argv[1])
loaded = images.load_images(find_source(str(root), None, root, 24), 24)
print("sum", int(loaded.pixels.sum()), flush=True)
"""


def _start_loader(root: Path, secs_an_image: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOADER, str(root), str(secs_an_image)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_process_killed_while_writing_leaves_no_entry(make_images: MakeImages, project: Path) -> None:
    root = make_images(num_per_class=20)
    loader = _start_loader(root, 0.2)
    assert loader.stdout is not None
    assert loader.stdout.readline() == "decoded\n"
    loader.send_signal(signal.SIGKILL)
    loader.wait()
    cache = Path(os.environ["FAKEFACE_CACHE"]) / "pixels"
    assert [path.name for path in cache.iterdir() if path.is_dir() and path.suffix != ".partial"] == []
    assert list(cache.glob("*.partial/pixels.npy")), "the kill came before the writing"
    images = _load(root)
    np.testing.assert_array_equal(images.pixels[7], decode_image(images.files[7].path, 24)[0])
    assert list(cache.glob("*.partial")) == []


@pytest.mark.slow
def test_two_processes_at_once_decode_once_and_agree(make_images: MakeImages, project: Path) -> None:
    root = make_images(num_per_class=20)
    loaders = [_start_loader(root, 0.02) for _ in range(2)]
    outputs = [loader.communicate(timeout=60)[0].splitlines() for loader in loaders]
    expected = f"sum {int(_load(root).pixels.sum())}"
    assert [output[-1] for output in outputs] == [expected, expected]
    assert sum(output.count("decoded") for output in outputs) == 40


@pytest.mark.real_data
def test_real_images_are_those_of_keras_load_img(real_images: Path, project: Path) -> None:
    from fakeface_lab.backend import keras

    images = _load(real_images, 300)
    assert images.class_counts() == {"fake": 700, "real": 589}
    assert (images.skipped, images.remarks) == ((), {})
    for row in range(0, len(images.files), 25):
        expected = keras.utils.img_to_array(keras.utils.load_img(images.files[row].path, target_size=(300, 300)))
        np.testing.assert_array_equal(images.pixels[row], expected)
