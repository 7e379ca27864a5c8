"""The fast training step beside Keras's own: the same losses, weights and dropout."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakeface_lab.backend import keras, tf
from fakeface_lab.detector import fast_step
from fakeface_lab.detector.fast_step import keep_flags, why_plain
from fakeface_lab.detector.fit import Training
from fakeface_lab.settings import BaselineSettings, Hyperparameters, TuneSettings

SMALL = Hyperparameters(filters_1=4, filters_2=6, dense_units=8)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2),
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    rate=st.floats(0.01, 0.99),
)
def test_the_flags_are_those_of_tensorflows_dropout(seed: tuple[int, int], shape: list[int], rate: float) -> None:
    expected = tf.nn.experimental.stateless_dropout(tf.ones(shape), rate=rate, seed=seed).numpy() > 0
    np.testing.assert_array_equal(keep_flags(tf.constant(seed), tf.constant(shape), rate).numpy(), expected)


def test_the_flags_are_those_of_a_large_map_too() -> None:
    expected = tf.nn.experimental.stateless_dropout(tf.ones([3, 75, 75, 64]), rate=0.25, seed=[7, 8]).numpy() > 0
    flags = keep_flags(tf.constant([7, 8]), tf.constant([3, 75, 75, 64]), 0.25).numpy()
    np.testing.assert_array_equal(flags, expected)
    assert flags.mean() == pytest.approx(0.75, abs=0.01)


def losses_and_weights(training: Training, num_steps: int = 24, batch_size: int = 8) -> tuple[list[float], list[Any]]:
    rng, size_px = np.random.default_rng(0), training.image_size
    images = rng.random((num_steps, batch_size, size_px, size_px, 3), dtype=np.float32)
    labels = np.eye(2, dtype=np.float32)[rng.integers(0, 2, (num_steps, batch_size))]
    images += labels[..., None, None, :1] * 0.1  # something to learn
    model = training.build()
    losses = [model.train_on_batch(*batch)[0] for batch in zip(images, labels, strict=True)]
    return [float(loss) for loss in losses], [weight.numpy() for weight in model.weights]


CONFIGURATIONS = {
    "documented": (Hyperparameters(), 24),
    "without dropout": (SMALL.model_copy(update={"conv_dropout": 0.0, "dense_dropout": 0.0}), 32),
    "odd sizes": (SMALL, 37),
    "another rate": (SMALL.model_copy(update={"conv_dropout": 0.4, "learning_rate": 0.0003}), 26),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "documented" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGURATIONS],
)
def test_24_steps_have_the_losses_of_kerass_own_step(name: str, deterministic: None) -> None:
    values, size_px = CONFIGURATIONS[name]
    plain, plain_weights = losses_and_weights(Training(values, size_px, 1, 1))
    fast, fast_weights = losses_and_weights(Training(values, size_px, 1, 1, step="fast"))
    # `train_on_batch` returns the mean since the first step.
    assert fast == pytest.approx(plain, rel=1e-5)
    assert plain[-1] != plain[0]
    for ours, theirs in zip(fast_weights, plain_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_the_same_model_is_trained_with_the_same_layers_and_optimizer_state(deterministic: None) -> None:
    models = [Training(SMALL, 32, 1, 1, step=step).build() for step in ("plain", "fast")]
    assert models[0].get_config() == models[1].get_config()
    x, y = np.random.default_rng(0).random((6, 32, 32, 3), dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 1] * 3]
    for model in models:
        model.train_on_batch(x, y)
    for ours, theirs in zip(models[1].optimizer.variables, models[0].optimizer.variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-3, atol=1e-7)
    seeds = [[layer.seed_generator.state.numpy().tolist() for layer in model.layers[3:4]] for model in models]
    assert seeds[0] == seeds[1]


def test_other_rates_are_compiled_once(deterministic: None) -> None:
    compiled: tuple[Any, ...] = (fast_step._philox, fast_step._pool_and_drop, fast_step._passed_on, fast_step._spread)
    counts = []
    for rate in (0.2, 0.3, 0.6):
        values = SMALL.model_copy(update={"conv_dropout": rate})
        losses_and_weights(Training(values, 28, 1, 1, step="fast"), num_steps=1)
        counts.append([function.experimental_get_tracing_count() for function in compiled])
    assert min(counts[0]) > 0
    assert counts[0] == counts[1] == counts[2]


def test_another_precision_takes_the_plain_step_and_says_so() -> None:
    half = Hyperparameters(precision="mixed_bfloat16")
    assert why_plain(Hyperparameters()) is None
    assert why_plain(half) == "precision mixed_bfloat16: the fast step computes in float32"
    assert Training(half, 32, 0, 1, step="fast").step_taken == "plain"
    assert Training(SMALL, 32, 0, 1, step="fast").step_taken == "fast"
    assert isinstance(Training(half, 32, 0, 1, step="fast").build(), keras.Model)


def test_a_baseline_is_as_documented_and_trials_are_fast() -> None:
    assert BaselineSettings().step == "plain"
    assert TuneSettings().step == "fast"
