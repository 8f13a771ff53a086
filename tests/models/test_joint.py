import numpy as np
import pytest

from tests.models.layers import check_layer, dtype_policy
from tf_rnnt_kd.models.joint import Joint


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make():
    layer = Joint(5, 4)
    layer.build((None, None, 3), (None, None, 6))
    return layer


def lattice(layer, encoded, predicted):
    return layer(layer.project_encoded(encoded)[:, :, None], layer.project_predicted(predicted)[:, None])


class Built(Joint):
    """Built on construction, since the check hands over one shape."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self.built:
            self.build((None, None, 3), (None, None, 6))
            self.built = True


def test_layer():
    check_layer(lambda: Built(5, 4), [random(2, 7, 3), random(2, 3, 6)], (2, 7, 3, 5), lattice)


def test_equals_its_formula():
    layer = make()
    weights = {v.path.split("/", 1)[1]: v.numpy().astype(np.float64) for v in layer.weights}
    encoded, predicted = random(2, 7, 3), random(2, 3, 6, seed=1)
    left = encoded @ weights["project_encoded/kernel"] + weights["project_encoded/bias"]
    right = predicted @ weights["project_predicted/kernel"] + weights["project_predicted/bias"]
    expected = np.tanh(left[:, :, None] + right[:, None]) @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(lattice(layer, encoded, predicted), expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_logits_are_float32(policy):
    with dtype_policy(policy):
        layer = make()
        assert lattice(layer, random(1, 2, 3), random(1, 2, 6)).dtype == "float32"
