"""What an accuracy rests on: where in the images a network finds its evidence, and what a simple probe reaches too.

HiResCAM maps and their summaries (the mean per class, the share near the border) come first, then the explained share:
the part of a model's gain over chance that a probe, which sees almost nothing of a picture, gains on the same images.
Training the probes and drawing the maps is done elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fakeface_lab.errors import DataError, ModelError
from fakeface_lab.evaluation.audit.probes import ProbeResult
from fakeface_lab.evaluation.intervals import THRESHOLD, Interval, check_mask, positives, wilson

if TYPE_CHECKING:
    import keras

__all__ = [
    "BORDER_FRACTION",
    "BorderShare",
    "Explained",
    "border_share",
    "evidence",
    "explain_by_probe",
    "explained_share",
    "hirescam",
    "mean_evidence",
]

FloatMaps = NDArray[np.float32]

BORDER_FRACTION = 0.15  # of the side, on each of the four sides: 51 % of the area
# So many that 50 of them lie beyond each end of a 95 % interval.
_NUM_RESAMPLES = 2000


def hirescam(model: "keras.Model", images: ArrayLike, batch_size: int = 32) -> FloatMaps:
    """Signed HiResCAM maps of the logit margin: float32 (N, h, w) on the grid of the last features.

    Each value is the sum over channels of feature times gradient (Draelos & Carin 2020, arXiv 2011.08891),
    with the features taken where they enter the flatten layer. Values above 0 are evidence for class 0, values below 0
    for class 1. Unlike Grad-CAM it does not average the gradient over locations, so it never highlights one that the
    dense layers ignore; for a ReLU head without biases a map sums to the margin itself. The margin is the logit of
    class 0 (positive) minus that of class 1; the softmax is left out because it is flat near 0 and 1, where its
    gradient vanishes.

    Args:
        model: a built Keras model that ends in a softmax over two classes.
        images: float (N, H, W, 3), scaled as the model takes them.
        batch_size: images in memory at a time.

    Raises:
        ModelError: the model does not end in such a softmax, or has no flatten layer before its dense layers.
    """
    # Imported here, because the rest of the module needs only NumPy and should not wait seconds for TensorFlow.
    import tensorflow as tf

    features, margin = _split_model(model)
    pixels = np.asarray(images)
    maps = []
    for start in range(0, len(pixels), batch_size):
        activations = features(pixels[start : start + batch_size], training=False)
        with tf.GradientTape() as tape:
            # A tape follows variables by itself, but these are plain tensors.
            tape.watch(activations)
            margins = margin(activations)
        # The gradient of the sum over the batch is each image's own: in inference no layer mixes the images.
        gradients = tape.gradient(margins, activations)
        # In float32, because a sum over channels loses its digits in bfloat16, which has eight bits for them.
        products = tf.cast(activations, tf.float32) * tf.cast(gradients, tf.float32)
        maps.append(tf.reduce_sum(products, axis=-1).numpy())
    return np.concatenate(maps)


def evidence(maps: FloatMaps, class_index: int) -> FloatMaps:
    """The part of signed maps that is evidence for one class (0 positive, 1 negative): same shape, at least 0."""
    return np.maximum(maps if class_index == 0 else -maps, 0)


def mean_evidence(maps: FloatMaps, labels: ArrayLike) -> FloatMaps:
    """Mean map per class, float32 (2, h, w): where the images of a class show evidence for that class.

    Each image has the same weight: its map is divided by its sum before the mean is taken. An image without evidence
    for its own class adds nothing. Each mean sums to at most 1.

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
        # `where` leaves the skipped entries as they are in `out`, which is why that begins at 0.
        means.append(np.divide(own, totals, out=np.zeros_like(own), where=totals > 0).mean(axis=0))
    return np.stack(means)


@dataclass(frozen=True)
class BorderShare:
    """How much of the maps' energy lies near the image border.

    Attributes:
        energy: share of the sum of absolute values in the border, in [0, 1]; mean over the counted images.
        area: share of the area in the border, in [0, 1]. If the energy exceeds it, the background is used.
        num_images: images counted; those whose map is 0 everywhere are left out.
    """

    energy: float
    area: float
    num_images: int


def border_share(maps: FloatMaps, border_fraction: float = BORDER_FRACTION) -> BorderShare:
    """Share of the energy in the outer `border_fraction` of each side; cells on the line count in proportion.

    Raises:
        DataError: every map is 0 everywhere.
    """
    inside = np.outer(*(_inner_coverage(size, border_fraction) for size in maps.shape[1:]))
    in_border = np.clip(1 - inside, 0, 1)  # rounding leaves -1e-15
    energy = np.abs(maps, dtype=np.float64)
    totals = energy.sum(axis=(1, 2))
    if not (totals > 0).any():
        raise DataError(f"all {len(maps)} maps are 0 everywhere: the model uses no part of these images")
    shares = (energy * in_border).sum(axis=(1, 2))[totals > 0] / totals[totals > 0]
    return BorderShare(float(shares.mean()), float(in_border.mean()), int((totals > 0).sum()))


def _inner_coverage(num_cells: int, border_fraction: float) -> NDArray[np.float64]:
    """Fraction of each cell of a row that lies between the borders, so that a coarse grid does not move the border."""
    edges = np.clip(np.linspace(0, 1, num_cells + 1), border_fraction, 1 - border_fraction)
    return np.diff(edges) * num_cells


def _split_model(model: "keras.Model") -> tuple["keras.Model", Callable[[ArrayLike], Any]]:
    """The model up to its last flatten layer, and the rest up to the logit margin; found by layer type."""
    import keras

    if not model.built or model.output_shape[-1] != 2:
        raise ModelError(
            f"model {model.name!r} is not a built model with two outputs: expected a softmax over two classes; "
            "call it once on an image to build it"
        )
    # By type, because Keras numbers its automatic names on with each model that a process builds.
    flattens = [layer for layer in model.layers if isinstance(layer, keras.layers.Flatten)]
    last = model.layers[-1]
    is_softmax = (
        isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
    )
    if not flattens or not is_softmax:
        raise ModelError(
            f"model {model.name!r} cannot be explained by HiResCAM: expected a flatten layer after the "
            "convolutions and a softmax at the end, its layers are "
            f"{', '.join(type(layer).__name__ for layer in model.layers)}"
        )
    features = keras.Model(model.inputs[0], flattens[-1].input)
    head = keras.Model(flattens[-1].input, last.input)
    signs = np.array([1, -1], dtype=np.float32)  # class 0 minus class 1

    def margin(activations: ArrayLike) -> Any:
        logits = head(activations, training=False)
        if isinstance(last, keras.layers.Dense):  # the softmax is fused into the layer: recompute its logits
            logits = keras.ops.matmul(keras.ops.cast(logits, "float32"), last.kernel)
            logits = logits + last.bias if last.use_bias else logits
        return keras.ops.sum(keras.ops.cast(logits, "float32") * signs, axis=-1)

    return features, margin


@dataclass(frozen=True)
class Explained:
    """A model compared with chance and with a simple probe on the same images.

    Attributes:
        majority: share of the larger class, in [0.5, 1].
        share: part of the model's gain over the majority that the probe gains too, in [0, 1]; None if the interval of
            the model's accuracy includes the majority, because there is nothing to explain then.
        interval: 95 % interval of the share, by a bootstrap over the images; None without a share.
        sentence: the same in words.
    """

    majority: float
    share: float | None
    interval: Interval | None
    sentence: str

    def metrics(self) -> dict[str, float]:
        """`majority_accuracy`, and if there is a share `explained_share` with `_low` and `_high`."""
        metrics = {"majority_accuracy": self.majority}
        if self.share is not None and self.interval is not None:
            metrics |= {
                "explained_share": self.share,
                "explained_share_low": self.interval.low,
                "explained_share_high": self.interval.high,
            }
        return metrics


def explain_by_probe(probe: ProbeResult, labels: NDArray[np.int64], is_correct: ArrayLike) -> Explained:
    """Compare a model's decisions with what chance and a simple probe get right on the same images.

    The interval is a percentile interval of a paired bootstrap (2,000 resamples, fixed seed): each resample scores the
    model, the probe and the majority on the same images.

    Args:
        probe: the probe's result on these images.
        labels: int64 (N,), 0 for the positive class.
        is_correct: bool (N,), whether the model is right about each image.

    Raises:
        DataError: the lengths differ, or there is no image.
    """
    model = check_mask(is_correct, "is_correct", len(labels))
    by_probe = check_mask((probe.scores > THRESHOLD) == positives(labels), "the probe's decisions", len(labels))
    by_majority = labels == np.bincount(labels, minlength=2).argmax()
    accuracy, majority = wilson(int(model.sum()), model.size), float(by_majority.mean())
    sees = f"A simple model that sees only {probe.sees}"
    share = explained_share(probe.accuracy.value, accuracy.value, majority)
    # A gain that may be due to chance cannot be the denominator: the share could take any value.
    if share is None or accuracy.low <= majority:
        sentence = (
            f"An accuracy of {accuracy} is not better than always naming the larger class ({majority:.3f}). "
            f"{sees} is right on {probe.accuracy.value:.3f} of the same images."
        )
        return Explained(majority, None, None, sentence)
    interval = _interval(np.stack([by_probe, model, by_majority]))
    has = f"{sees} has {share:.2f} of the accuracy above chance (95 % interval {interval.low:.2f}-{interval.high:.2f}"
    figures = f"{probe.accuracy.value:.3f} against {accuracy.value:.3f}, chance {majority:.3f}"
    return Explained(majority, share, interval, f"{has}; {figures}){_consequence(share)}")


def explained_share(probe_accuracy: float, accuracy: float, majority: float) -> float | None:
    """The part of a model's gain over guessing that a simple probe gains on the same images.

    (probe_accuracy - majority) / (accuracy - majority), clipped to [0, 1]: 0 for a probe no better than guessing, 1 for
    a probe at least as good as the model.

    Args:
        probe_accuracy: of a simple classifier on a few features, in [0, 1].
        accuracy: of the model on the same images, in [0, 1].
        majority: share of the largest class among them, in [0, 1].

    Returns:
        The share, or None if the model itself does not beat the majority.

    Raises:
        DataError: a value outside [0, 1], or NaN.
    """
    for name, value in (("probe_accuracy", probe_accuracy), ("accuracy", accuracy), ("majority", majority)):
        if not 0.0 <= value <= 1.0:
            raise DataError(f"{name} is {value}, expected 0 to 1; pass a share, not a percentage")
    if accuracy <= majority:
        return None
    share = (probe_accuracy - majority) / (accuracy - majority)
    return min(max(share, 0.0), 1.0)


def _interval(is_correct: NDArray[np.bool_]) -> Interval:
    """Percentile interval of the share; rows of `is_correct` (3, N) are probe, model and majority."""
    # Images differ only in who is right about them, so a resample is a multinomial draw over these kinds.
    kinds, counts = np.unique(is_correct, axis=1, return_counts=True)
    num_images = is_correct.shape[1]
    drawn = np.random.default_rng(0).multinomial(num_images, counts / num_images, _NUM_RESAMPLES)
    probe, model, majority = kinds.astype(np.float64) @ drawn.T
    # Resamples in which the model gains nothing have no share, so they are left out.
    has_gain = model > majority
    shares = np.clip((probe - majority)[has_gain] / (model - majority)[has_gain], 0.0, 1.0)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(float(low), float(high))


def _consequence(share: float) -> str:
    if share >= 0.9:
        return ": this accuracy does not show that faces were looked at."
    if share >= 0.5:
        return ": most of this accuracy does not require looking at faces."
    return "."
