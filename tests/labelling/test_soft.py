import numpy as np
import pytest

from tests import tiny
from tests.models.layers import dtype_policy
from tf_rnnt_kd.labelling.soft import codec_error, joint_arrays, make_spec, teacher_fields


@pytest.fixture(scope="module")
def model():
    return tiny.talkative()


def states(model, frames=7, labels=3):
    rng = np.random.default_rng(0)
    return (rng.standard_normal([n, model.joint_width]).astype(np.float32) for n in (frames, labels + 1))


def lattice(model, encoded, predicted):
    hidden = np.tanh(encoded.astype(np.float64)[:, None] + predicted.astype(np.float64)[None])
    return hidden @ model.joint_kernel.numpy() + model.joint_bias.numpy()


def test_the_spec_describes_the_model(model):
    spec = make_spec(model, "factored", "bfloat16", "h")
    assert (spec.codec, spec.dtype, spec.teacher_hash, spec.frame_ms) == ("factored", "bfloat16", "h", 40)
    assert (spec.width, spec.vocabulary_size, spec.blank_id) == (12, 6, 0)
    assert make_spec(model, "lattice", "float16", "h").width == 0


def test_factored_fields_are_the_states_in_the_stored_type(model):
    encoded, predicted = states(model)
    for dtype in ("float32", "float16", "bfloat16"):
        fields = teacher_fields(model, make_spec(model, "factored", dtype, "h"), encoded, predicted)
        assert {name: value.dtype.name for name, value in fields.items()} == {"encoded": dtype, "predicted": dtype}
        np.testing.assert_array_equal(fields["encoded"], encoded.astype(fields["encoded"].dtype))


def test_factored_fields_and_joint_rebuild_the_lattice(model):
    encoded, predicted = states(model)
    fields = teacher_fields(model, make_spec(model, "factored", "float32", "h"), encoded, predicted)
    kernel, bias = joint_arrays(model)
    assert kernel.dtype == bias.dtype == np.float32
    rebuilt = np.tanh(fields["encoded"][:, None] + fields["predicted"][None]) @ kernel + bias
    np.testing.assert_allclose(rebuilt, lattice(model, encoded, predicted), atol=1e-5)


def test_lattice_fields_are_the_logits(model):
    encoded, predicted = states(model)
    fields = teacher_fields(model, make_spec(model, "lattice", "float16", "h"), encoded, predicted)
    assert list(fields) == ["logits"] and fields["logits"].dtype == np.float16
    np.testing.assert_allclose(fields["logits"], lattice(model, encoded, predicted), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("codec", "dtype", "least", "most"),
    [
        ("factored", "float32", 0.0, 0.0),
        ("factored", "float16", 1e-9, 1e-5),
        ("factored", "bfloat16", 1e-7, 1e-2),
        ("lattice", "float32", 0.0, 0.0),
        ("lattice", "float16", 1e-9, 1e-5),
        ("lattice", "bfloat16", 1e-7, 1e-2),
    ],
)
def test_the_error_of_a_codec_is_that_of_its_type(model, codec, dtype, least, most):
    error = codec_error(model, make_spec(model, codec, dtype, "h"), *states(model))
    assert least <= error <= most


def test_the_error_is_the_mean_kl_of_the_nodes(model):
    encoded, predicted = states(model)
    spec = make_spec(model, "lattice", "bfloat16", "h")
    logits = [lattice(model, encoded, predicted)]
    logits.append(teacher_fields(model, spec, encoded, predicted)["logits"].astype(np.float64))
    exact, stored = (x - np.log(np.sum(np.exp(x), -1, keepdims=True)) for x in logits)
    expected = np.mean(np.sum(np.exp(exact) * (exact - stored), -1))
    assert codec_error(model, spec, encoded, predicted) == pytest.approx(expected, rel=1e-2)


def test_a_teacher_of_mixed_precision_can_be_stored():
    with dtype_policy("mixed_bfloat16"):
        model = tiny.talkative()
    encoded, predicted = states(model)
    for codec in ("factored", "lattice"):
        assert 0.0 <= codec_error(model, make_spec(model, codec, "float32", "h"), encoded, predicted) < 1e-2
    assert joint_arrays(model)[0].dtype == np.float32
