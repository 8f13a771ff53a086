"""What every layer must do, in one place."""

import contextlib

import keras
import numpy as np
import tensorflow as tf


def check_layer(make, inputs, output_shape, call=None, unused=()):
    """Shape, build, save and load, mixed precision, one training step.

    Args:
      make: builds a new layer, not yet built.
      inputs: arrays.
      output_shape: expected.
      call: (layer, *inputs) -> output, if it is not `layer(*inputs)`.
      unused: last parts of the paths of weights that `call` does not reach.
    """
    call = call or (lambda layer, *inputs: layer(*inputs))
    keras.utils.set_random_seed(0)
    layer = make()
    outputs = call(_built(layer, inputs), *inputs)
    assert tuple(outputs.shape) == tuple(output_shape) and outputs.dtype == tf.float32
    _check_weights(layer)
    _check_round_trip(layer, inputs, outputs, call)
    _check_training_step(layer, inputs, call, unused)
    _check_mixed_precision(make, inputs, output_shape, call)


@contextlib.contextmanager
def dtype_policy(name):
    """A global Keras policy that ends with the block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _built(layer, inputs):
    if not layer.built:
        layer.build(*[np.shape(i) for i in inputs[:1]])
    return layer


def _check_weights(layer):
    paths = [variable.path for variable in layer.weights]
    assert paths and len(set(paths)) == len(paths)
    assert all(variable.trainable for variable in layer.weights)


def _check_round_trip(layer, inputs, outputs, call):
    config = layer.get_config()
    twin = _built(type(layer).from_config(config), inputs)
    assert twin.get_config() == config
    assert [v.shape for v in twin.weights] == [v.shape for v in layer.weights]
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(call(twin, *inputs), outputs)


def _check_training_step(layer, inputs, call, unused):
    with tf.GradientTape() as tape:
        outputs = call(layer, *inputs)
        # Not a plain sum: that of a normalised output is constant.
        weights = np.random.default_rng(0).standard_normal(outputs.shape)
        loss = tf.reduce_sum(outputs * weights.astype(np.float32))
    variables = [v for v in layer.trainable_variables if not v.path.endswith(tuple(unused) or "\0")]
    gradients = tape.gradient(loss, [v.value for v in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        assert gradient is not None, f"{variable.path} has no gradient"
        assert np.all(np.isfinite(gradient)) and np.any(np.asarray(gradient)), variable.path
        before = variable.numpy()
        variable.assign_sub(0.1 * gradient / tf.reduce_max(tf.abs(gradient)))
        assert np.any(variable.numpy() != before), f"{variable.path} does not move"


def _check_mixed_precision(make, inputs, output_shape, call):
    with dtype_policy("mixed_bfloat16"):
        layer = make()
        outputs = call(_built(layer, inputs), *inputs)
    assert tuple(outputs.shape) == tuple(output_shape)
    assert np.all(np.isfinite(tf.cast(outputs, tf.float32)))
    assert {v.dtype for v in layer.weights} == {"float32"}
    assert layer.compute_dtype == "bfloat16"
