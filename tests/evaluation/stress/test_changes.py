"""Each change of the stress suite against an independent computation."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.stress.changes import apply
from fakeface_lab.evaluation.stress.suite import CLEAN, CONDITIONS, Condition
from tests.evaluation.stress.pictures import BY_NAME, pictures, stressed


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_each_condition_keeps_shape_and_type_and_leaves_its_input_alone(condition: Condition) -> None:
    images = pictures()
    before = images.copy()
    changed = np.stack([apply(condition, image) for image in images])
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    assert np.array_equal(changed, images) == (condition is CLEAN)


@settings(max_examples=40, deadline=None)
@given(condition=st.sampled_from(CONDITIONS), height=st.integers(2, 20))
def test_small_pictures_are_changed_too(condition: Condition, height: int) -> None:
    (image,) = pictures(1, height=height, width=17)
    assert apply(condition, image).shape == (height, 17, 3)


@pytest.mark.parametrize("quality", [95, 30])
def test_jpeg_is_what_pillow_writes_at_that_quality(quality: int) -> None:
    images = pictures(2)
    buffer = io.BytesIO()
    Image.fromarray(images[1]).save(buffer, "JPEG", quality=quality)
    np.testing.assert_array_equal(stressed(f"jpeg_{quality}", images)[1], np.asarray(Image.open(buffer)))


def test_a_blurred_point_has_the_spread_of_its_sigma() -> None:
    point = np.zeros((1, 61, 61, 3), np.uint8)
    point[0, 30, 30] = 255
    point[0, 24:37, 24:37] = 255
    for sigma in (1, 2, 3, 4):
        spread = stressed(f"blur_{sigma}", point)[0, :, :, 1].sum(axis=0).astype(float)
        offsets = np.arange(61) - 30
        variance = (spread * offsets**2).sum() / spread.sum()
        # variances of independent blurs add up: that of the 13 px square is (13**2 - 1) / 12
        assert variance == pytest.approx((13**2 - 1) / 12 + sigma**2, rel=0.03)


def test_gray_has_the_luma_of_bt601_in_all_channels() -> None:
    images = pictures()
    gray = stressed("gray", images)
    assert np.ptp(gray.astype(int), axis=-1).max() == 0
    np.testing.assert_allclose(gray[..., 0], images @ np.array([0.299, 0.587, 0.114]), atol=1)


def test_flip_is_its_own_inverse_and_mirrors_left_and_right() -> None:
    images = pictures()
    np.testing.assert_array_equal(stressed("flip", images)[:, :, 0], images[:, :, -1])
    np.testing.assert_array_equal(stressed("flip", stressed("flip", images)), images)


def test_shift_moves_down_and_right_and_repeats_the_edge() -> None:
    images = pictures()
    shifted = stressed("shift_10", images)
    np.testing.assert_array_equal(shifted[:, 4:, 6:], images[:, :-4, :-6])
    np.testing.assert_array_equal(shifted[:, :5, 6:], np.repeat(images[:, :1, :-6], 5, axis=1))


def radial(side_px: int, scale: float) -> NDArray[np.uint8]:
    """A cone of brightness around the image centre: `scale` 2 looks twice as large."""
    axis = np.arange(side_px) - (side_px - 1) / 2
    distance = np.hypot(axis[:, None], axis[None, :]) / scale
    cone: NDArray[np.uint8] = np.rint(np.clip(250 - 2 * distance, 0, 255)).astype(np.uint8)
    return cone[None, :, :, None].repeat(3, axis=-1)


@pytest.mark.parametrize(("name", "scale"), [("crop_70", 1 / 0.7), ("crop_85", 1 / 0.85), ("pad_130", 1 / 1.3)])
def test_crop_magnifies_and_padding_shrinks_about_the_centre(name: str, scale: float) -> None:
    changed = stressed(name, radial(100, 1))[0].astype(int)
    expected = radial(100, scale)[0].astype(int)
    margin = 15 if name.startswith("pad") else 1
    inside = slice(margin, -margin)
    assert np.abs(changed - expected)[inside, inside].mean() < 1.5
    assert np.abs(changed - radial(100, 1)[0].astype(int))[inside, inside].mean() > 4


def test_padding_is_gray_and_of_the_stated_share() -> None:
    white = np.full((1, 260, 260, 3), 255, np.uint8)
    padded = stressed("pad_130", white)[0, :, :, 0]
    assert (padded[:29] == 128).all()
    assert (padded == 255).mean() == pytest.approx(1 / 1.3**2, rel=0.03)


def test_rescaling_removes_a_fine_pattern_and_keeps_a_coarse_one() -> None:
    columns = np.arange(64)
    fine = np.broadcast_to(((columns % 2) * 255).astype(np.uint8)[None, None, :, None], (1, 64, 64, 3)).copy()
    coarse = np.broadcast_to(((columns // 32) * 255).astype(np.uint8)[None, None, :, None], (1, 64, 64, 3)).copy()
    assert stressed("rescale_0.25", fine)[:, 8:-8, 8:-8].std() < 3
    assert np.abs(stressed("rescale_0.25", coarse).astype(int) - coarse).mean() < 12


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("shift_up_left_10", -4, -6), ("shift_up_right_10", -4, 6), ("shift_down_left_10", 4, -6), ("shift_10", 4, 6)],
)
def test_shifts_go_in_all_directions(name: str, rows: int, columns: int) -> None:
    images = pictures()
    moved = np.roll(images, (rows, columns), axis=(1, 2))
    inside = np.s_[:, 4:-4, 6:-6]
    np.testing.assert_array_equal(stressed(name, images)[inside], moved[inside])


@pytest.mark.parametrize(("name", "mode"), [("pad_edge_130", "edge"), ("pad_reflect_130", "symmetric")])
def test_padding_continues_the_picture(name: str, mode: Any) -> None:
    (image,) = pictures(1, 40, 60)
    padded = np.pad(image, ((6, 6), (9, 9), (0, 0)), mode=mode)
    expected = Image.fromarray(padded).resize((60, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(stressed(name, image[None])[0], np.asarray(expected))


def test_rotation_turns_counter_clockwise_about_the_centre() -> None:
    rows, columns = np.indices((101, 101)) - 50
    image = np.repeat((2 * np.clip(columns, 0, None) + 50).astype(np.uint8)[..., None], 3, axis=2)
    turned = stressed("rotate_15", image[None])[0, ..., 0].astype(float)
    along = columns * np.cos(np.radians(15)) - rows * np.sin(np.radians(15))
    expected = 2 * np.clip(along, 0, None) + 50
    inside = np.hypot(rows, columns) < 40
    assert np.abs(turned - expected)[inside].max() < 2.5


@pytest.mark.parametrize("percent", [80, 120])
def test_brightness_and_contrast_scale_about_black_and_about_the_mean(percent: int) -> None:
    (image,) = pictures(1)
    bright = stressed(f"brightness_{percent}", image[None])[0]
    np.testing.assert_allclose(bright, np.clip(image * (percent / 100), 0, 255), atol=1)
    mean = float((image @ np.array([0.299, 0.587, 0.114])).mean())
    contrast = stressed(f"contrast_{percent}", image[None])[0]
    np.testing.assert_allclose(contrast, np.clip(mean + (image - mean) * (percent / 100), 0, 255), atol=2)


def test_combined_changes() -> None:
    images = pictures(2)
    np.testing.assert_array_equal(stressed("blur_jpeg_50", images), stressed("jpeg_50", stressed("blur_2", images)))
    small = [Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR) for image in images]
    saved = stressed("jpeg_75", np.stack([np.asarray(image) for image in small]))
    back = [np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BILINEAR)) for image in saved]
    np.testing.assert_array_equal(stressed("rescale_jpeg_75", images), np.stack(back))


def test_noise_has_its_sigma_and_differs_between_images_only() -> None:
    gray = np.full((2, 100, 100, 3), 128, np.uint8)
    gray[1, 0, 0] = 129
    for sigma in (5, 10):
        noise = stressed(f"noise_{sigma}", gray).astype(float) - gray
        assert noise.std() == pytest.approx(sigma, rel=0.03)
        assert abs(noise.mean()) < 0.2
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(stressed("noise_5", gray[::-1])[::-1], stressed("noise_5", gray))


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.float32), np.zeros((2, 8, 8, 3), np.uint8)])
def test_scaled_or_several_images_are_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match=r"'jpeg_50' takes a uint8 image of shape \(H, W, 3\), not"):
        apply(BY_NAME["jpeg_50"], image)
