"""The documented CNN's training step as another program for the same mathematics, with stock TensorFlow operations.

What takes less time than in Keras's own step:

- Each convolution's ReLU, max pooling and dropout are one block, forward and backward. ReLU and max pooling commute, so
  the smaller map is rectified; one byte per pooled value says where its gradient goes, if anywhere.
- The gradient of a bias is summed over the pooled map, which has all of its terms, and not over the four times larger
  one.
- Dropout's random numbers are Keras's own (Philox4x32-10, Salmon et al. 2011), bit by bit, in 32-bit operations that
  XLA vectorizes.
- Adam is TensorFlow's fused kernel, with epsilon where Keras has it.

Sums come in another order, so losses agree to about 1e-5, not to the last bit (docs/performance.md).

Non-public members of Keras 3.15 used here: `_compute_loss` and `_loss_tracker` of a model, as in its own `train_step`;
`_momentums` and `_velocities` of Adam.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fakeface_lab.backend import keras, tf
from fakeface_lab.settings import Hyperparameters

__all__ = ["keep_flags", "use_fast_step", "why_plain"]

_PHILOX_FACTORS, _PHILOX_STEPS, _PHILOX_ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
_MANTISSA_BITS = 23  # of a float32: a uniform number is as many random bits

_NOWHERE = 4  # in place of a position in the 2x2 window: the pooled value passes no gradient on


Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Return a function that XLA compiles for each shape that it is called with."""
    compiled: Function = tf.function(function, jit_compile=True)
    return compiled


def why_plain(values: Hyperparameters) -> str | None:
    """Return why a configuration takes Keras's own step; None if the fast one serves it."""
    if values.precision != "float32":
        return f"precision {values.precision}: the fast step computes in float32"
    if tf.config.get_visible_devices("GPU"):
        return "a GPU is used: the fast step is written for processors"
    return None


def use_fast_step(model: keras.Model) -> None:
    """Replace the training step of a compiled model as `build_model` returns it."""
    # Before the step is traced: a function cannot create variables when it is called again.
    model.optimizer.build(model.trainable_variables)
    model.train_step = _train_step(model)


def _train_step(model: keras.Model) -> Callable[[Any], dict[str, Any]]:
    names = ("conv2d", "dropout", "conv2d_1", "dropout_1", "dense", "dropout_2", "dense_1")
    conv_1, dropout_1, conv_2, dropout_2, dense_1, dropout_3, dense_2 = map(model.get_layer, names)

    def step(data: Any) -> dict[str, Any]:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            hidden = _convolve(x, conv_1, dropout_1)
            hidden = _convolve(hidden, conv_2, dropout_2)
            hidden = tf.reshape(hidden, [-1, math.prod(hidden.shape[1:])])
            hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(hidden, dense_1.kernel.value), dense_1.bias.value))
            logits = dense_2(dropout_3(hidden, training=True))
            y_pred = tf.nn.softmax(logits)
            loss = model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weights, training=True)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        _apply_adam(model.optimizer, variables, tape.gradient(loss, variables))
        metrics: dict[str, Any] = model.compute_metrics(x, y, y_pred, sample_weight=weights)
        return metrics

    return step


def _convolve(x: tf.Tensor, conv: Any, dropout: Any) -> tf.Tensor:
    """Return what convolution, ReLU, max pooling and dropout make of `x`, with their gradient."""
    # Outside of the gradient, so that the numbers are drawn once.
    keep = _draw(x, conv, dropout) if dropout.rate else None
    # A tensor, like the threshold in `keep_flags`: with a Python number, XLA would compile again for each rate.
    scale = tf.constant(1.0 / (1.0 - dropout.rate))

    def block(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
        convolved = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
        pooled, position = _pool(convolved, scale) if keep is None else _pool_and_drop(convolved, keep, scale)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            passed = _passed_on(upstream, position, scale)
            spread = _spread(passed, position, tf.shape(convolved))
            same = {"strides": [1, 1, 1, 1], "padding": "SAME"}
            return (
                tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(x), filter=kernel, out_backprop=spread, **same),
                tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, out_backprop=spread, **same),
                # Through another shape: MKL's rewriting would fuse the sum into the gradient of the filter, which then
                # takes twice as long.
                tf.raw_ops.BiasAddGrad(out_backprop=tf.reshape(passed, [-1, passed.shape[-1]])),
            )

        return pooled, gradient

    return tf.custom_gradient(block)(x, conv.kernel.value, conv.bias.value)


def _draw(x: tf.Tensor, conv: Any, dropout: Any) -> tf.Tensor:
    shape = tf.stack([tf.shape(x)[0], tf.shape(x)[1] // 2, tf.shape(x)[2] // 2, conv.filters])
    seed = tf.cast(dropout.seed_generator.next(), tf.uint32)
    return keep_flags(tf.bitcast(seed, tf.int32), shape, dropout.rate)


def keep_flags(seed: tf.Tensor, shape: tf.Tensor, rate: float) -> tf.Tensor:
    """Return which values `tf.nn.experimental.stateless_dropout` keeps, uint8 of this shape: 1 or 0.

    Args:
        seed: int32 (2,).
        shape: int32 (rank,).
        rate: share of dropped values, in (0, 1).
    """
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    num_values = tf.reduce_prod(shape)
    # The smallest mantissa that is not below the rate, as float32 numbers compare.
    threshold = math.ceil(float(np.float32(rate)) * 2**_MANTISSA_BITS)
    words = _philox(key, counter, (num_values + 3) // 4, _word(threshold))
    return tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:num_values], shape)


@_compiled
def _philox(key: tf.Tensor, counter: tf.Tensor, num_blocks: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Return uint32 (num_blocks,) of four bytes, each 1 if its random number is at least the threshold, else 0."""
    index = tf.bitcast(tf.range(num_blocks, dtype=tf.int32), tf.uint32)
    (key_0, key_1), (low, high), (low_2, high_2) = _halves(key[0]), _halves(counter[0]), _halves(counter[1])
    word_0 = low + index
    carry = tf.cast(word_0 < index, tf.uint32)
    word_1 = high + carry
    word_2 = low_2 + carry * tf.cast(word_1 == 0, tf.uint32)
    word_3 = tf.broadcast_to(high_2, tf.shape(index))
    xor = tf.bitwise.bitwise_xor
    for _ in range(_PHILOX_ROUNDS):
        high_0, low_0 = _multiply(word_0, _PHILOX_FACTORS[0])
        high_1, low_1 = _multiply(word_2, _PHILOX_FACTORS[1])
        word_0, word_1, word_2, word_3 = xor(xor(high_1, word_1), key_0), low_1, xor(xor(high_0, word_3), key_1), low_0
        key_0, key_1 = key_0 + _word(_PHILOX_STEPS[0]), key_1 + _word(_PHILOX_STEPS[1])
    flags = _word(0)
    mantissa = _word(2**_MANTISSA_BITS - 1)
    for number, word in enumerate((word_0, word_1, word_2, word_3)):
        is_kept = tf.cast(tf.bitwise.bitwise_and(word, mantissa) >= threshold, tf.uint32)
        flags = tf.bitwise.bitwise_or(flags, tf.bitwise.left_shift(is_kept, _word(8 * number)))
    return flags


def _multiply(word: tf.Tensor, factor: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the high and the low 32 bits of a product, from products of halves: XLA vectorizes no 64-bit product."""
    shift, low_bits = _word(16), _word(0xFFFF)
    high, low = tf.bitwise.right_shift(word, shift), tf.bitwise.bitwise_and(word, low_bits)
    factor_high, factor_low = _word(factor >> 16), _word(factor & 0xFFFF)
    middle = high * factor_low + tf.bitwise.right_shift(low * factor_low, shift)
    other = low * factor_high + tf.bitwise.bitwise_and(middle, low_bits)
    above = tf.bitwise.right_shift(middle, shift) + tf.bitwise.right_shift(other, shift)
    return high * factor_high + above, word * _word(factor)


def _halves(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the low and the high 32 bits of a uint64."""
    return tf.cast(number, tf.uint32), tf.cast(tf.bitwise.right_shift(number, tf.constant(32, tf.uint64)), tf.uint32)


def _word(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint32)


@_compiled
def _pool_and_drop(convolved: tf.Tensor, keep: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return _rectify(*_maxima(convolved), keep > 0, scale)


@_compiled
def _pool(convolved: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return _rectify(*_maxima(convolved), True, scale)


def _maxima(convolved: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the maxima of 2x2 windows, and where they are: the first of equal ones, row by row."""
    height, width = tf.shape(convolved)[1] // 2, tf.shape(convolved)[2] // 2
    convolved = convolved[:, : 2 * height, : 2 * width]  # an odd last row is in no window
    windows = [convolved[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    maxima = tf.maximum(tf.maximum(windows[0], windows[1]), tf.maximum(windows[2], windows[3]))
    position = tf.constant(3, tf.uint8)
    for number in (2, 1, 0):
        position = tf.where(windows[number] == maxima, tf.constant(number, tf.uint8), position)
    return maxima, position


def _rectify(
    maxima: tf.Tensor, position: tf.Tensor, keep: tf.Tensor | bool, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    is_passed = tf.logical_and(maxima > 0, keep)
    return tf.where(is_passed, maxima * scale, 0.0), tf.where(is_passed, position, tf.constant(_NOWHERE, tf.uint8))


@_compiled
def _passed_on(upstream: tf.Tensor, position: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Return the gradient of the maxima."""
    return tf.where(position < _NOWHERE, upstream * scale, 0.0)


@_compiled
def _spread(passed: tf.Tensor, position: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Return the gradient of a convolution, given that of its windows' maxima."""
    places = tf.reshape(tf.constant([0, 1, 2, 3], tf.uint8), [1, 1, 2, 1, 2, 1])
    here = position[:, :, None, :, None, :] == places
    spread = tf.where(here, passed[:, :, None, :, None, :], 0.0)
    height, width = tf.shape(passed)[1], tf.shape(passed)[2]
    spread = tf.reshape(spread, [shape[0], 2 * height, 2 * width, shape[3]])
    return tf.pad(spread, [[0, 0], [0, shape[1] - 2 * height], [0, shape[2] - 2 * width], [0, 0]])


def _apply_adam(optimizer: Any, variables: list[Any], gradients: list[Any]) -> None:
    rate = tf.cast(optimizer.learning_rate, tf.float32)
    number = tf.cast(optimizer.iterations.value + 1, tf.float32)
    beta_1, beta_2 = tf.constant(optimizer.beta_1, tf.float32), tf.constant(optimizer.beta_2, tf.float32)
    slots = zip(optimizer._momentums, optimizer._velocities, strict=True)
    for variable, gradient, (momentum, velocity) in zip(variables, gradients, slots, strict=True):
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=momentum.value.handle, v=velocity.value.handle, grad=gradient, lr=rate,
            beta1=beta_1, beta2=beta_2, beta1_power=tf.pow(beta_1, number), beta2_power=tf.pow(beta_2, number),
            epsilon=optimizer.epsilon,
        )  # fmt: skip
    optimizer.iterations.value.assign_add(1)
