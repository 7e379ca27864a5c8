"""Properties of files written by the tests, against the options they were written with."""

import colorsys
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from fakeface_lab.data.properties import FILE_COLUMNS, PIXEL_COLUMNS, file_properties, pixel_properties
from fakeface_lab.errors import DataError


def noise_image(seed: int = 0, size: tuple[int, int] = (40, 24)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(5, 100), st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]), st.booleans())
def test_jpeg_properties_are_as_saved(tmp_path: Path, quality: int, subsampling: str, progressive: bool) -> None:
    path = tmp_path / "picture.jpg"
    noise_image().save(path, quality=quality, subsampling=subsampling, progressive=progressive)
    row = file_properties([path]).iloc[0]
    assert row["jpeg_quality"] == quality
    assert row["chroma_subsampling"] == subsampling
    assert row["is_progressive"] == progressive
    assert (row["width_px"], row["height_px"], row["format"], row["mode"]) == (40, 24, "JPEG", "RGB")
    assert row["bytes"] == os.path.getsize(path)  # noqa: PTH202  (an oracle that is not pathlib)
    assert row["bytes_per_pixel"] == pytest.approx(row["bytes"] / 960)


def test_a_table_between_two_qualities_gets_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    noise_image().save(path, quality=80)
    with Image.open(path) as image:
        tables = {key: list(table) for key, table in image.quantization.items()}  # type: ignore[attr-defined]
    tables[0][63] += 1
    noise_image().save(path, qtables=tables)
    assert file_properties([path])["jpeg_quality"].tolist() == [80.0]


def test_metadata_png_and_gray_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271] = "camera"
    noise_image().save(tmp_path / "a.jpg", exif=exif, icc_profile=b"profile")
    noise_image().save(tmp_path / "b.png")
    noise_image().convert("L").save(tmp_path / "c.jpg")
    table = file_properties([tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "c.jpg"])
    assert tuple(table.columns) == FILE_COLUMNS
    assert table["metadata"].tolist() == ["exif, icc_profile, jfif", "none", "jfif"]
    assert table["exif"].tolist() == ["Make=camera", "none", "none"]
    assert table["dpi"].tolist() == ["72x72", "none", "none"]  # 72 is the default of EXIF
    assert table["format"].tolist() == ["JPEG", "PNG", "JPEG"]
    assert table["mode"].tolist() == ["RGB", "RGB", "L"]
    assert table["chroma_subsampling"].tolist() == ["4:2:0", "none", "none"]
    assert table["jpeg_quality"].isna().tolist() == [False, True, False]


def test_values_of_exif_and_resolution_without_times(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "editor " * 20
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.DateTime] = "2020:01:01 00:00:00"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.01
    noise_image().save(tmp_path / "a.jpg", exif=exif, dpi=(96, 72), comment=b"by hand")
    noise_image().save(tmp_path / "b.png", dpi=(96, 96))
    table = file_properties([tmp_path / "a.jpg", tmp_path / "b.png"])
    assert table["exif"].tolist() == [f"Orientation=6; Software={('editor ' * 20)[:60]}", "none"]
    assert table["dpi"].tolist() == ["96x72", "96.012x96.012"]  # PNG counts in whole pixels per metre
    assert table["metadata"].tolist() == ["comment, exif, jfif", "none"]


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    with pytest.raises(DataError, match=r"notes\.jpg cannot be read as an image .*: remove the file or leave it"):
        file_properties([path])
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read as an image"):
        file_properties([tmp_path / "gone.jpg"])


def test_saturation_and_means_agree_with_colorsys() -> None:
    images = np.random.default_rng(3).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    table = pixel_properties(images)
    assert tuple(table.columns) == PIXEL_COLUMNS
    for position, pixels in enumerate(images):
        saturations = [colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in pixels.reshape(-1, 3)]
        assert table["saturation"][position] == pytest.approx(np.mean(saturations), rel=1e-5)
        assert table["mean_green"][position] == pytest.approx(pixels[..., 1].mean(), rel=1e-5)


def test_colourfulness_of_a_half_red_half_blue_picture() -> None:
    image = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    image[0, 0, :, 0] = 255  # red: rg = 255, yb = 127.5; blue: rg = 0, yb = -255
    image[0, 1, :, 2] = 255
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, 63.75)
    assert pixel_properties(image)["colourfulness"][0] == pytest.approx(expected, rel=1e-6)


def test_gray_survives_jpeg_noise_but_not_a_coloured_patch() -> None:
    rng = np.random.default_rng(4)
    gray = np.repeat(rng.integers(0, 256, (1, 50, 50, 1), dtype=np.uint8), 3, axis=3)
    noisy = np.clip(gray.astype(int) + rng.integers(-4, 5, gray.shape), 0, 255).astype(np.uint8)
    patched = gray.copy()
    patched[0, :10, :10] = [200, 30, 30]
    assert pixel_properties(np.concatenate([gray, noisy, patched]))["is_gray"].tolist() == [True, True, False]


def test_no_pictures_give_an_empty_table() -> None:
    assert list(file_properties([]).columns) == list(FILE_COLUMNS)
    assert len(pixel_properties(np.zeros((0, 8, 8, 3), dtype=np.uint8))) == 0
