"""The networks of `configs/models`, at their own sizes."""

import pathlib

import gin
import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd import config
from tf_rnnt_kd.models.conformer import ConformerEncoder
from tf_rnnt_kd.models.transducer import Transducer

MODELS = pathlib.Path(config.__file__).parents[1] / "configs" / "models"


def build(name, scope=""):
    """The model that a plan with this file would train, with 1024 word pieces."""
    gin.clear_config()
    gin.parse_config_file(str(MODELS / f"{name}.gin"), print_includes_and_imports=False)
    with gin.config_scope(scope or None):
        return gin.get_configurable(Transducer)(1024)


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


@pytest.mark.parametrize("name", ["small", "s", "m", "l", "xl"])
def test_every_file_has_a_student_that_streams(name):
    gin.clear_config()
    gin.parse_config_file(str(MODELS / f"{name}.gin"), print_includes_and_imports=False)
    scope = "causal" if name == "small" else "streaming"
    with gin.config_scope(scope):
        bound = gin.get_bindings(ConformerEncoder)
    assert bound["causal"] and bound["left_context"] > 0
