"""The networks of `configs/models`, at their own sizes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.config import load_factory
from tf_rnnt_kd.models.transducer import Transducer


def build(*names, scope=""):
    """The model that a plan with these files would train, with 1024 word pieces."""
    return load_factory([f"configs/models/{name}.gin" for name in names], Transducer, scope)(1024)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("s", 10.3e6),
        ("m", 30.7e6),
        pytest.param("l", 118.8e6, marks=pytest.mark.slow),
        pytest.param("xl", 600e6, marks=pytest.mark.slow),
    ],
)
def test_the_count_of_parameters_is_the_papers_and_a_forward_pass_runs(name, wanted):
    model = build(name)
    assert model.count_params() == pytest.approx(wanted, rel=0.03)
    features = np.random.default_rng(0).standard_normal([1, 64, 80]).astype(np.float32)
    encoded, num_frames, predicted = model(tf.constant(features), tf.constant([64]), tf.constant([[1, 2]]))
    assert encoded.shape == (1, 16, model.joint_width) and predicted.shape == (1, 3, model.joint_width)
    assert num_frames.numpy().tolist() == [16] and np.all(np.isfinite(encoded))


@pytest.mark.parametrize(
    ("names", "scope"),
    [
        (("small", "causal"), "causal"),
        (("s", "streaming"), "streaming"),
        (("m", "streaming"), "streaming"),
        (("l", "streaming"), "streaming"),
        (("xl", "streaming_s"), "streaming"),
    ],
)
def test_every_file_has_a_student_that_streams(names, scope):
    with keras.StatelessScope():
        encoder = build(*names, scope=scope).encoder
        keras.backend.clear_session()  # no weights are needed
    assert encoder.causal and encoder.left_context > 0
