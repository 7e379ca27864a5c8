"""How much of a model's accuracy simple features reach too, as a figure with its interval and in words.

Owns that one figure and its sentence; the probes are trained elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from fakeface_lab.errors import DataError, ModelError
from fakeface_lab.evaluation.intervals import Interval, check_mask, wilson
from fakeface_lab.evaluation.probes import ProbeResult

__all__ = [
    "BORDER_FRACTION",
    "BorderShare",
    "Explained",
    "border_share",
    "evidence",
    "explain",
    "explained_share",
    "hirescam",
    "logit_margins",
    "mean_evidence",
    "occlusion",
    "sanity_check",
]

if TYPE_CHECKING:
    import keras


FloatMaps = NDArray[np.float32]

BORDER_FRACTION = 0.15  # of the side, on each of the four sides: 51 % of the area


def logit_margins(model: "keras.Model", images: ArrayLike, batch_size: int = 32) -> FloatMaps:
    """Logit of class 0 (positive) minus logit of class 1: float32 (N,), above 0 where class 0 is decided.

    The softmax is left out: near 0 and 1 it is flat, and its gradient says nothing.

    Args:
        model: a built Keras model that ends in a softmax over two classes.
        images: float (N, H, W, 3), scaled as the model takes them.
        batch_size: images in memory at a time.

    Raises:
        ModelError: the model has another ending, or no flatten layer between convolutions and dense layers.
    """
    features, margin = _split_model(model)
    pixels = np.asarray(images)
    parts = [
        np.asarray(margin(features(pixels[start : start + batch_size], training=False)))
        for start in range(0, len(pixels), batch_size)
    ]
    return np.concatenate(parts).astype(np.float32)


def hirescam(model: "keras.Model", images: ArrayLike, batch_size: int = 32) -> FloatMaps:
    """Signed HiResCAM maps of the logit margin: float32 (N, h, w) on the grid of the last features.

    Each value is the sum over channels of feature times gradient (Draelos & Carin 2020, arXiv 2011.08891),
    with the features taken where they enter the flatten layer. Above 0 speaks for class 0, below 0 for class
    1. Unlike Grad-CAM it does not average the gradient over places, so it shows no place that the dense
    layers do not use; for a ReLU head without biases a map sums to the margin itself. Arguments and errors as
    in `logit_margins`.
    """
    import tensorflow as tf

    features, margin = _split_model(model)
    pixels = np.asarray(images)
    maps = []
    for start in range(0, len(pixels), batch_size):
        activations = features(pixels[start : start + batch_size], training=False)
        with tf.GradientTape() as tape:
            tape.watch(activations)
            margins = margin(activations)
        gradients = tape.gradient(margins, activations)
        products = tf.cast(activations, tf.float32) * tf.cast(gradients, tf.float32)
        maps.append(tf.reduce_sum(products, axis=-1).numpy())
    return np.concatenate(maps)


def evidence(maps: FloatMaps, class_index: int) -> FloatMaps:
    """The part of signed maps that speaks for one class (0 positive, 1 negative): same shape, at least 0."""
    return np.maximum(maps if class_index == 0 else -maps, 0)


def mean_evidence(maps: FloatMaps, labels: ArrayLike) -> FloatMaps:
    """Mean map per class, float32 (2, h, w): where images of a class show evidence for that class.

    Each image weighs the same: its map is divided by its sum before the mean is taken. An image without
        evidence for
    its own class adds nothing. Each mean sums to at most 1.

    Raises:
        DataError: a class has no image.
    """
    classes = np.asarray(labels)
    means = []
    for class_index in (0, 1):
        own = evidence(maps[classes == class_index], class_index)
        if len(own) == 0:
            raise DataError(f"no image of class {class_index} among {len(maps)} maps: give images of both classes")
        totals = own.sum(axis=(1, 2), keepdims=True)
        means.append(np.divide(own, totals, out=np.zeros_like(own), where=totals > 0).mean(axis=0))
    return np.stack(means)


@dataclass(frozen=True)
class BorderShare:
    """How much of a map's energy lies near the image border.

    Attributes:
        energy: share of the sum of absolute values in the border, in [0, 1]; mean over the images with any.
        area: share of the area in the border. More energy than area: the background is used.
        num_images: images that count; those whose map is 0 everywhere are left out.
    """

    energy: float
    area: float
    num_images: int


def border_share(maps: FloatMaps, border_fraction: float = BORDER_FRACTION) -> BorderShare:
    """Share of energy in the outer `border_fraction` of each side; cells on the line count in part.

    Raises:
        DataError: every map is 0 everywhere.
    """
    inside = np.outer(*(_inner_coverage(size, border_fraction) for size in maps.shape[1:]))
    in_border = np.clip(1 - inside, 0, 1)  # rounding leaves -1e-15
    energy = np.abs(maps, dtype=np.float64)
    totals = energy.sum(axis=(1, 2))
    if not (totals > 0).any():
        raise DataError(f"all {len(maps)} maps are 0 everywhere: the model uses no place in these images")
    shares = (energy * in_border).sum(axis=(1, 2))[totals > 0] / totals[totals > 0]
    return BorderShare(float(shares.mean()), float(in_border.mean()), int((totals > 0).sum()))


def _inner_coverage(num_cells: int, border_fraction: float) -> NDArray[np.float64]:
    """Part of each cell of a row between the borders, in [0, 1]: a coarse grid must not move the border."""
    edges = np.clip(np.linspace(0, 1, num_cells + 1), border_fraction, 1 - border_fraction)
    return np.diff(edges) * num_cells


def occlusion(
    margins: Callable[[NDArray[np.float32]], ArrayLike],
    image: ArrayLike,
    fill: ArrayLike,
    window_px: int = 32,
    stride_px: int = 16,
) -> FloatMaps:
    """How far the margin falls when a window is hidden: float32 (H, W), mean over windows covering a pixel.

    Needs nothing of the model but its margins (Zeiler & Fergus 2014). Above 0: what was there spoke for class
    0.

    Args:
        margins: images float32 (B, H, W, 3) -> (B,), e.g. `logit_margins` with its model bound.
        image: float (H, W, 3), scaled as the model takes it.
        fill: what hides a window, of a shape that broadcasts to the image: the mean colour of the training
            images, or a blurred copy of the image. A change seen with both is not caused by the fill.
        window_px: side of the square window, at most the image's shorter side.
        stride_px: distance between windows; at most `window_px`, so that each pixel is covered.

    Raises:
        DataError: window and stride do not fit the image.
    """
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    if not 0 < stride_px <= window_px <= min(height, width):
        raise DataError(
            f"an occlusion window of {window_px} px with stride {stride_px} px does not fit an image of "
            f"{height} x {width} px: needed is 0 < stride <= window <= shorter side"
        )
    hidden = np.broadcast_to(np.asarray(fill, dtype=np.float32), pixels.shape)
    clean = float(np.asarray(margins(pixels[None]))[0])
    fall, num_windows = np.zeros((2, height, width))
    lefts = _starts(width, window_px, stride_px)
    for top in _starts(height, window_px, stride_px):
        row = np.repeat(pixels[None], len(lefts), axis=0)
        windows = [np.s_[top : top + window_px, left : left + window_px] for left in lefts]
        for copy, window in zip(row, windows, strict=True):
            copy[window] = hidden[window]
        for window, value in zip(windows, np.asarray(margins(row)), strict=True):
            fall[window] += clean - float(value)
            num_windows[window] += 1
    return (fall / num_windows).astype(np.float32)


def _starts(size_px: int, window_px: int, stride_px: int) -> list[int]:
    last = size_px - window_px
    return sorted({*range(0, last, stride_px), last})  # the last window ends at the edge, whatever the stride


def sanity_check(model: "keras.Model", images: ArrayLike, seed: int = 0) -> pd.DataFrame:
    """Do the maps depend on what was learnt? Weights are randomised from the last layer down, layer by layer.

    Cascading randomisation of Adebayo et al. 2018 (arXiv 1810.03292): maps that stay the same describe the
    image, not the model. Each kernel is replaced by normal values of its own standard deviation, each bias by
    0, in a copy.

    Returns:
        Columns layer (randomised down to here) and spearman (mean over the images of the rank correlation
        with the trained model's map, in [-1, 1]; 0 for a map that has become constant). The first row, layer
        "none", is 1.
    """
    import keras

    rng = np.random.default_rng(seed)
    trained = hirescam(model, images)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    rows: list[tuple[str, float]] = [("none", 1.0)]
    for layer in reversed([layer for layer in copy.layers if hasattr(layer, "kernel")]):
        kernel, *biases = layer.get_weights()
        layer.set_weights([rng.normal(0, kernel.std(), kernel.shape), *(np.zeros_like(bias) for bias in biases)])
        rows.append((layer.name, _rank_correlation(trained, hirescam(copy, images))))
    return pd.DataFrame(rows, columns=["layer", "spearman"])


def _rank_correlation(maps: FloatMaps, others: FloatMaps) -> float:
    values = [
        spearmanr(one.ravel(), other.ravel()).statistic if np.ptp(one) > 0 and np.ptp(other) > 0 else 0.0
        for one, other in zip(maps, others, strict=True)
    ]
    return float(np.mean(values))


def _split_model(model: "keras.Model") -> tuple["keras.Model", Callable[[ArrayLike], Any]]:
    """The model up to its last flatten layer, and the rest up to the logit margin; found by layer type."""
    import keras

    if not model.built or model.output_shape[-1] != 2:
        raise ModelError(
            f"model {model.name!r} has no two outputs that are known yet: needed is a built model with a "
            "softmax over two classes; call it once on an image"
        )
    flattens = [layer for layer in model.layers if isinstance(layer, keras.layers.Flatten)]
    last = model.layers[-1]
    is_softmax = (
        isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
    )
    if not flattens or not is_softmax:
        raise ModelError(
            f"model {model.name!r} cannot be explained by HiResCAM: needed is a flatten layer after the "
            "convolutions and a softmax at the end, its layers are "
            f"{', '.join(type(layer).__name__ for layer in model.layers)}; use occlusion instead"
        )
    features = keras.Model(model.inputs[0], flattens[-1].input)
    head = keras.Model(flattens[-1].input, last.input)
    direction = np.array([1, -1], dtype=np.float32)  # class 0 minus class 1

    def margin(activations: ArrayLike) -> Any:
        logits = head(activations, training=False)
        if isinstance(last, keras.layers.Dense):  # softmax fused into the layer: apply it without its activation
            logits = keras.ops.matmul(keras.ops.cast(logits, "float32"), last.kernel)
            logits = logits + last.bias if last.use_bias else logits
        return keras.ops.sum(keras.ops.cast(logits, "float32") * direction, axis=-1)

    return features, margin


NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Explained:
    """A model beside chance and a simple probe, on the same images.

    Attributes:
        majority: share of the larger class, in [0.5, 1].
        share: part of the model's gain over the majority that the probe gains too, in [0, 1]; None where the interval
            of the model's accuracy reaches down to the majority: there is nothing to explain then.
        interval: of the share, 95 %, by a bootstrap of the images; None without a share.
        sentence: the same for the user.
    """

    majority: float
    share: float | None
    interval: Interval | None
    sentence: str

    def metrics(self) -> dict[str, float]:
        """`majority_accuracy`, and where there is a share `explained_share` with `_low` and `_high`."""
        metrics = {"majority_accuracy": self.majority}
        if self.share is not None and self.interval is not None:
            metrics |= {
                "explained_share": self.share,
                "explained_share_low": self.interval.low,
                "explained_share_high": self.interval.high,
            }
        return metrics


def explain(probe: ProbeResult, labels: NDArray[np.int64], is_correct: ArrayLike) -> Explained:
    """Set a model's decisions beside what chance and a simple probe get right on the same images.

    The interval is that of a paired bootstrap: each resample takes the model, the probe and the majority on the same
    images (percentile, 2,000 resamples, one seed).

    Args:
        probe: the probe's result on these images.
        labels: int64 (N,), 0 for the positive class.
        is_correct: bool (N,), whether the model is right about each image.

    Raises:
        DataError: lengths that differ, or no image.
    """
    model = check_mask(is_correct, "is_correct", len(labels))
    by_probe = check_mask((probe.scores > 0.5) == (labels == 0), "the probe's decisions", len(labels))
    by_majority = labels == np.bincount(labels, minlength=2).argmax()
    accuracy, majority = wilson(int(model.sum()), model.size), float(by_majority.mean())
    sees = f"A simple model that sees only {probe.sees}"
    share = explained_share(probe.accuracy.value, accuracy.value, majority)
    if share is None or accuracy.low <= majority:
        sentence = (
            f"An accuracy of {accuracy} is not better than chance, always naming the larger class ({majority:.3f}). "
            f"{sees} is right on {probe.accuracy.value:.3f} of the same images."
        )
        return Explained(majority, None, None, sentence)
    interval = _interval(np.stack([by_probe, model, by_majority]))
    has = f"{sees} has {share:.2f} of the accuracy above chance (95 % interval {interval.low:.2f}-{interval.high:.2f}"
    figures = f"{probe.accuracy.value:.3f} against {accuracy.value:.3f}, chance {majority:.3f}"
    return Explained(majority, share, interval, f"{has}; {figures}){_consequence(share)}")


def explained_share(probe_accuracy: float, accuracy: float, majority: float) -> float | None:
    """The part of a model's gain over guessing that a simple probe gains on the same images.

    (probe_accuracy - majority) / (accuracy - majority), in [0, 1]: 0 for a probe no better than guessing, 1
    for a probe as good as the model or better.

    Args:
        probe_accuracy: of a simple classifier on a few features, in [0, 1].
        accuracy: of the model on the same images, in [0, 1].
        majority: share of the largest class among them, in [0, 1].

    Returns:
        The share, or None where the model itself is not above the majority: there is nothing to explain.

    Raises:
        DataError: a value outside [0, 1], or NaN.
    """
    for name, value in (("probe_accuracy", probe_accuracy), ("accuracy", accuracy), ("majority", majority)):
        if not 0.0 <= value <= 1.0:
            raise DataError(f"{name} is {value}, allowed is 0 to 1; pass a share, not a percentage")
    if accuracy <= majority:
        return None
    share = (probe_accuracy - majority) / (accuracy - majority)
    return min(max(share, 0.0), 1.0)


def _interval(is_correct: NDArray[np.bool_]) -> Interval:
    """Percentile interval of the share; rows of `is_correct` (3, N) are probe, model and majority."""
    # Images differ only in who is right about them, so a resample is a draw of how many there are of each kind.
    kinds, counts = np.unique(is_correct, axis=1, return_counts=True)
    num_images = is_correct.shape[1]
    drawn = np.random.default_rng(0).multinomial(num_images, counts / num_images, NUM_RESAMPLES)
    probe, model, majority = kinds.astype(np.float64) @ drawn.T
    has_gain = model > majority
    shares = np.clip((probe - majority)[has_gain] / (model - majority)[has_gain], 0.0, 1.0)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(float(low), float(high))


def _consequence(share: float) -> str:
    if share >= 0.9:
        return ": this accuracy does not show that faces were looked at."
    if share >= 0.5:
        return ": most of this accuracy needs no look at faces."
    return "."
