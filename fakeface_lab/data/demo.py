"""The demo set: faces drawn from a seed, for users without photographs.

Owns how a demo face is drawn, which traces make it a fake, and how the set is written to disk.
Both classes come from the same renderer with the same distributions of head, skin, hair, features, backdrop, light and
noise, and go through the same JPEG encoder. A fake also gets, inside the face oval only, the traces of generators: the
grid of up-sampling (Odena et al., "Deconvolution and Checkerboard Artifacts", Distill 2016) on smoothed texture, and
eyes that do not match (Matern et al., "Exploiting Visual Artifacts", WACVW 2019).
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from fakeface_lab.errors import DataError

__all__ = [
    "DEFAULT_NUM_PER_CLASS",
    "DEFAULT_SIZE_PX",
    "DRAWING_VERSION",
    "MIN_NUM_PER_CLASS",
    "MIN_SIZE_PX",
    "draw_face",
    "face_oval",
    "generate_demo",
]

DEFAULT_NUM_PER_CLASS = 300
DEFAULT_SIZE_PX = 64
MIN_NUM_PER_CLASS = 5  # so that each of five folds has at least one face of each class
MIN_SIZE_PX = 32  # in smaller pictures an eye is narrower than the traces
DRAWING_VERSION = 3  # increment it when a seed gives another picture, so that no stale set is reused

# With these values only the traces tell the classes apart: over 20 seeds no shortcut probe of the audit had an AUC
# above 0.636 (docs/truth.md).
_SUPERSAMPLING = 3  # canvas pixels per picture pixel and axis; the reduction smooths the outlines
_JPEG_QUALITY = 95  # the traces survive it
_PORE_PX = 0.75  # standard deviation of the Gaussian that sets the size of the pores
_PORE_CONTRAST = (0.07, 0.10)  # standard deviation of the skin's texture, fraction of its brightness
_SMOOTHING_PX = 1.5  # standard deviation of the Gaussian that removes this texture
_GRID_CONTRAST = (0.08, 0.17)  # standard deviation of the grid; from faint to obvious, so that learning is gradual
_TEXTURE_TINT = (1.0, 0.75, 1.4)  # of red, green, blue: as visible as gray to a network, but less so to the eye
_NOISE_RANGE = (0.5, 2.5)  # standard deviation of the camera's noise, gray levels
_SETTINGS_FILE = "demo.json"

_Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class _Person:
    """What varies between faces, in the same way in both classes; lengths in half-heights of the face, RGB to 255."""

    center: tuple[float, float]  # fractions of the picture's side
    half_height: float  # fraction of the picture's side
    half_width: float
    jaw: float
    tilt_rad: float
    turn: float
    eye_height: float
    eye_size: float
    smile: float
    fringe: float
    parting: float
    long_hair: bool
    glasses: bool
    skin: _Floats
    hair: _Floats
    shirt: _Floats
    lips: _Floats
    whites: _Floats  # of the eyes, and the teeth
    irises: _Floats  # (2, 3): the left one, and what the right one becomes in a fake


def _any_person(rng: np.random.Generator) -> _Person:
    """A person sampled from the distributions that both classes share."""
    tone = rng.uniform(0, 0.7)
    skin = (1 - tone) * np.array([246, 212, 188.0]) + tone * np.array([128, 84, 62.0]) + rng.normal(0, 4, 3)
    hairs = np.array([[52, 42, 38], [84, 56, 38], [142, 98, 58], [206, 172, 112], [150, 146, 144.0]])
    irises = np.array([[84, 54, 32], [66, 104, 150], [84, 122, 74], [120, 128, 132.0]])
    return _Person(
        center=(rng.uniform(0.36, 0.64), rng.uniform(0.46, 0.58)),
        half_height=rng.uniform(0.36, 0.44),
        half_width=rng.uniform(0.68, 0.82),
        jaw=rng.uniform(0.10, 0.32),
        tilt_rad=rng.normal(0, 0.17),
        turn=rng.uniform(-0.12, 0.12),
        eye_height=rng.uniform(-0.16, -0.06),
        eye_size=rng.uniform(0.125, 0.16),
        smile=rng.uniform(-0.02, 0.10),
        fringe=rng.uniform(-0.80, -0.50),
        parting=rng.uniform(-0.25, 0.25),
        long_hair=bool(rng.random() < 0.45),
        glasses=bool(rng.random() < 0.2),
        skin=skin,
        hair=hairs[rng.integers(5)] * rng.uniform(0.7, 1.3) + rng.normal(0, 4, 3),
        shirt=rng.uniform(10, 130, 3),
        lips=skin * [0.80, 0.55, 0.55] + [20, 0, 8],
        whites=np.array([244, 240, 236.0]),
        # Without replacement, or one in four fakes would have matching eyes.
        irises=irises[rng.permutation(4)[:2]] + rng.normal(0, 8, (2, 3)),
    )


def _ellipse(x: float, y: float, radius_x: float, radius_y: float) -> _Floats:
    """Outline of an upright ellipse, (48, 2)."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1)


def _oval(person: _Person) -> _Floats:
    """Outline of the face, (48, 2): an ellipse that narrows towards the chin."""
    outline = _ellipse(0, 0, person.half_width, 1)
    outline[:, 0] *= 1 - person.jaw * np.clip(outline[:, 1], 0, None) ** 2
    return outline


def _arc(x: float, y: float, half_width: float, bow: float) -> _Floats:
    """A shallow arc, (13, 2); positive `bow` bends its ends upwards."""
    across = np.linspace(-1, 1, 13)
    return np.stack([x + half_width * across, y - bow * across**2], axis=1)


class _Pen:
    """Draws in the person's own frame: origin between the ears, unit one half-height, y downwards."""

    def __init__(self, canvas: Image.Image, person: _Person) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._center = np.array(person.center) * canvas.width
        self._unit_px = person.half_height * canvas.width
        cos, sin = np.cos(person.tilt_rad), np.sin(person.tilt_rad)
        self._rotation = np.array([[cos, sin], [-sin, cos]])

    def fill(self, outline: _Floats, color: ArrayLike) -> None:
        self._draw.polygon(self._points(outline), fill=self._rgb(color))

    def stroke(self, path: _Floats, color: ArrayLike, width: float) -> None:
        self._draw.line(self._points(path), self._rgb(color), round(width * self._unit_px), joint="curve")

    def _points(self, outline: _Floats) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (self._center + outline @ self._rotation * self._unit_px).tolist()]

    def _rgb(self, color: ArrayLike) -> tuple[int, ...]:
        return tuple(np.broadcast_to(np.clip(color, 0, 255), 3).astype(int).tolist())


def _draw_person(canvas: Image.Image, person: _Person, fake: bool) -> None:
    pen = _Pen(canvas, person)
    if person.long_hair:
        pen.fill(_ellipse(0, 0.25, person.half_width * 1.32, 1.35), person.hair * 0.85)
    pen.fill(np.array([[-0.36, 0.4], [0.36, 0.4], [0.42, 1.6], [-0.42, 1.6]]), person.skin * 0.80)
    pen.fill(_ellipse(0, 2.15, 1.45, 0.95), person.shirt)
    pen.fill(_ellipse(0, 1.22, 0.36, 0.2), person.skin * 0.86)
    for side in (-1, 1):
        pen.fill(_ellipse(side * person.half_width, 0, 0.12, 0.2), person.skin * 0.9)
    pen.fill(_ellipse(0, -0.28, person.half_width * 1.14, 0.92), person.hair)
    oval = _oval(person)
    pen.fill(oval, person.skin)
    across = oval[:, 0] / person.half_width
    hairline = person.fringe + 0.5 * across**2 + person.parting * across
    pen.fill(np.stack([oval[:, 0], np.minimum(oval[:, 1], hairline)], axis=1), person.hair)
    nose = person.turn * 1.4
    pen.stroke(np.array([[nose - 0.04, 0.0], [nose - 0.1, 0.27]]), person.skin * 0.88, 0.03)
    for side in (-1, 1):
        pen.fill(_ellipse(nose + side * 0.07, 0.3, 0.045, 0.025), person.skin * 0.6)
    if person.smile > 0.06:  # wide enough to show the teeth
        pen.fill(_ellipse(person.turn, 0.56, 0.25, 0.085 + person.smile / 3), person.whites)
    pen.stroke(_arc(person.turn, 0.53, 0.29, person.smile), person.lips, 0.06)
    pen.stroke(_arc(person.turn, 0.62 + person.smile / 2, 0.22, person.smile * 1.5), person.lips * 1.1, 0.08)
    _draw_eyes(pen, person, fake)


def _draw_eyes(pen: _Pen, person: _Person, fake: bool) -> None:
    size, y, frame_color = person.eye_size, person.eye_height, (36, 32, 34)
    # Either eye of a fake may be the odd one, so that the classes have the same mean picture.
    odd_side = 1 if person.turn > 0 else -1
    for side in (-1, 1):
        x = person.turn + side * person.half_width * 0.44
        iris = person.irises[1 if fake and side == odd_side else 0]
        pen.fill(_ellipse(x, y, size * 1.15, size * 0.68), person.whites)
        pen.fill(_ellipse(x + person.turn / 4, y, size * 0.60, size * 0.62), iris)
        pen.fill(_ellipse(x + person.turn / 4, y, size * 0.28, size * 0.28), iris * 0.2)
        pen.fill(_ellipse(x + size * 0.2, y - size * 0.2, size * 0.13, size * 0.13), person.whites)
        pen.stroke(_arc(x, y - size * 0.72, size * 1.2, -size * 0.5), person.skin * 0.35, 0.035)
        pen.stroke(_arc(x, y - size * 1.75, size * 1.4, -size * 0.4), person.hair * 0.8, 0.07)
        if person.glasses:
            frame = _ellipse(x, y, size * 1.75, size * 1.5)
            # Its first two points again: Pillow draws a joint only between two segments.
            pen.stroke(np.vstack([frame, frame[:2]]), frame_color, 0.035)
    if person.glasses:
        pen.stroke(_arc(person.turn, y - 0.06, 0.11, -0.03), frame_color, 0.035)


def _backdrop(rng: np.random.Generator, canvas_px: int) -> Image.Image:
    """A smooth colour field: 3x3 random colours around a common one, enlarged."""
    colors = rng.uniform(15, 65) + rng.normal(0, 13, 3) + rng.normal(0, 28, (3, 3, 1)) + rng.normal(0, 12, (3, 3, 3))
    field = Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8))
    return field.resize((canvas_px, canvas_px), Image.Resampling.BICUBIC)


def _light(rng: np.random.Generator, person: _Person, size_px: int) -> _Floats:
    """Factor of each colour, (size, size, 3): red cheeks and soft hollows, lit from a random direction above."""
    canvas = Image.new("RGB", (size_px, size_px), (128, 128, 128))
    pen = _Pen(canvas, person)
    pen.fill(_oval(person), 116)
    pen.fill(_ellipse(0, 0.02, person.half_width * 0.80, 0.82), 134)
    for side in (-1, 1):
        x = person.turn + side * person.half_width * 0.44
        pen.fill(_ellipse(x, person.eye_height - 0.06, 0.2, 0.13), 114)
        pen.fill(_ellipse(x, 0.3, 0.17, 0.13), (140, 122, 122))
    pen.fill(_ellipse(person.turn * 1.4 + 0.08, 0.25, 0.1, 0.12), 114)
    pen.fill(_ellipse(person.turn, 0.78, 0.2, 0.05), 118)
    hollows = np.asarray(canvas.filter(ImageFilter.GaussianBlur(size_px * 0.02)), np.float64) / 128
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    lamp = rng.uniform(0.92, 1.05) + rng.uniform(-0.14, 0.14) * x - rng.uniform(0, 0.12) * y
    return np.asarray(hollows * lamp[..., None])


def _inside(person: _Person, size_px: int) -> _Floats:
    """1 inside the face oval, 0 outside, fractions on its outline: (size, size, 1)."""
    canvas = Image.new("RGB", (size_px * _SUPERSAMPLING,) * 2)
    _Pen(canvas, person).fill(_oval(person), 255)
    return _coverage(canvas)


def _skin(person: _Person, size_px: int) -> _Floats:
    """Share of skin in each pixel, 0 to 1, (size, size, 1): the person drawn with everything else in black."""
    black = np.zeros(3)
    stencil = replace(person, skin=np.full(3, 255.0), hair=black, shirt=black, lips=black, whites=black)
    canvas = Image.new("RGB", (size_px * _SUPERSAMPLING,) * 2)
    _draw_person(canvas, replace(stencil, irises=np.zeros((2, 3))), fake=False)
    return _coverage(canvas)


def _coverage(canvas: Image.Image) -> _Floats:
    return np.asarray(canvas.getchannel(0).reduce(_SUPERSAMPLING), np.float64)[..., None] / 255


def _textures(rng: np.random.Generator, size_px: int) -> tuple[_Floats, _Floats]:
    """Relative brightness of skin, mean 0, two times (size, size, 1): with pores, and with a generator's traces."""
    pores = gaussian_filter(rng.normal(0, 1, (size_px, size_px)), _PORE_PX)
    pores *= rng.uniform(*_PORE_CONTRAST) / np.std(pores)
    # The phase is random, because a linear model on the pixels would detect a fixed one.
    rows, columns = (-1.0) ** (np.arange(size_px) + rng.integers(2, size=(2, 1)))
    grid = rng.uniform(*_GRID_CONTRAST) / np.sqrt(2) * (rows[:, None] + columns)
    return pores[..., None], (gaussian_filter(pores, _SMOOTHING_PX) + grid)[..., None]


def face_oval(seed: int, size_px: int) -> NDArray[np.bool_]:
    """Where the face of `seed` is, and with it every trace of a fake: bool (size, size)."""
    return np.asarray(_inside(_any_person(np.random.default_rng(seed)), size_px)[..., 0] > 0)


def draw_face(seed: int, size_px: int, fake: bool) -> NDArray[np.uint8]:
    """One face, uint8 (size, size, 3) RGB; the same seed, size and class give the same bytes.

    Outside `face_oval(seed, size_px)` the fake and the real face of one seed are equal.

    Raises:
        DataError: `size_px` is below `MIN_SIZE_PX`.
    """
    _require("size_px", size_px, MIN_SIZE_PX, "a larger size")
    rng = np.random.default_rng(seed)
    person = _any_person(rng)
    canvas = _backdrop(rng, size_px * _SUPERSAMPLING)
    _draw_person(canvas, person, fake)
    picture = np.asarray(canvas.reduce(_SUPERSAMPLING), np.float64) * _light(rng, person, size_px)
    # Drawn for either class, or the random numbers after it would differ and with them the picture around the face.
    pores, generated = _textures(rng, size_px)
    noise = rng.normal(0, rng.uniform(*_NOISE_RANGE), picture.shape)
    if fake:  # without camera noise, whose absence saves as many bytes of the file as the grid costs
        inside = _inside(person, size_px)
        pores = pores + inside * (generated - pores)
        noise *= 1 - inside
    picture *= 1 + _skin(person, size_px) * pores * _TEXTURE_TINT
    picture = rng.uniform(0, 10) + rng.uniform(0.68, 0.95) * picture + noise  # random haze and contrast
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def generate_demo(
    root: Path,
    num_per_class: int = DEFAULT_NUM_PER_CLASS,
    size_px: int = DEFAULT_SIZE_PX,
    seed: int = 0,
) -> Path:
    """Draw a set into `root` and return it: `fake/fake_N.jpg` and `real/real_N.jpg`, N from 1 to `num_per_class`.

    A complete set with the same settings is returned as it is. The set is drawn in a temporary folder and renamed, so
    that a killed call leaves no partial set and two processes share one. No two pictures have the same face.

    Raises:
        DataError: `size_px` or `num_per_class` is too small, or `root` has other content or cannot be written.
    """
    _require("num_per_class", num_per_class, MIN_NUM_PER_CLASS, "more faces")
    _require("size_px", size_px, MIN_SIZE_PX, "a larger size")
    settings = {"version": DRAWING_VERSION, "num_per_class": num_per_class, "size_px": size_px, "seed": seed}
    if _is_complete(root, settings):
        return root
    partial = root.with_name(f".{root.name}.partial")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):
            if not _is_complete(root, settings):  # another process may have drawn it in the meantime
                shutil.rmtree(partial, ignore_errors=True)
                _write_set(partial, settings)
                partial.replace(root)
    except OSError as error:
        raise DataError(f"demo: {root} cannot be written ({error}); choose a folder that can be") from error
    return root


def _require(name: str, value: int, minimum: int, more: str) -> None:
    if value < minimum:
        raise DataError(f"demo: {name} is {value}; expected {minimum} or more, ask for {more}")


def _is_complete(root: Path, settings: dict[str, int]) -> bool:
    """Whether the set exists; rejects a folder with any other content."""
    if not root.exists():
        return False
    try:
        found: Any = json.loads((root / _SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        found = None
    if found != settings:
        raise DataError(
            f"demo: {root} exists and is not the demo set with {settings}; delete it or choose another folder"
        )
    return True


def _write_set(folder: Path, settings: dict[str, int]) -> None:
    for class_index, class_name in enumerate(("fake", "real")):
        (folder / class_name).mkdir(parents=True)
        for number in range(1, settings["num_per_class"] + 1):
            # The class is part of the key, or each fake would be a real face of the set with traces on it.
            key = np.random.SeedSequence((settings["seed"], class_index, number))
            face = draw_face(int(key.generate_state(1)[0]), settings["size_px"], fake=class_index == 0)
            path = folder / class_name / f"{class_name}_{number}.jpg"
            # Full resolution of the chroma, because the traces are tinted and subsampling would blur the tint.
            Image.fromarray(face).save(path, quality=_JPEG_QUALITY, subsampling=0)
    (folder / _SETTINGS_FILE).write_text(json.dumps(settings))
