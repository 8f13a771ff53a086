import numpy as np
import pytest
import tensorflow as tf

from tests.models.layers import check_layer
from tf_rnnt_kd.models.prediction import START_ID, PredictionNetwork

LABELS = np.array([[1, 4, 4, 2], [3, 1, 0, 0]], np.int32)


@pytest.fixture(scope="module", params=[1, 2])
def layer(request):
    layer = PredictionNetwork(5, 6, num_layers=request.param)
    layer.build((None, None))
    return layer


@pytest.mark.parametrize("num_layers", [1, 2])
def test_layer(num_layers):
    check_layer(lambda: PredictionNetwork(5, 6, num_layers, dropout=0.1), [LABELS], (2, 5, 6))


def test_output_u_depends_on_the_labels_before_it_only(layer):
    plain = layer(LABELS).numpy()
    for u in range(4):
        changed = LABELS.copy()
        changed[:, u] = 2 + (changed[:, u] == 2)
        outputs = layer(changed).numpy()
        np.testing.assert_array_equal(outputs[:, : u + 1], plain[:, : u + 1])
        assert np.all(np.any(outputs[:, u + 1 :] != plain[:, u + 1 :], axis=2))


def test_one_label_at_a_time_equals_all_at_once(layer):
    state = layer.initial_state(2)
    assert len(state) == 2 * layer.num_layers
    outputs = []
    for u in range(5):
        label = np.full([2], START_ID, np.int32) if u == 0 else LABELS[:, u - 1]
        output, state = layer.step(tf.constant(label), state)
        outputs.append(output)
    np.testing.assert_allclose(tf.stack(outputs, 1), layer(LABELS), atol=1e-6)


def test_no_labels_leave_the_start_alone(layer):
    start = layer(np.zeros([2, 0], np.int32))
    assert start.shape == (2, 1, 6)
    np.testing.assert_allclose(start, layer(LABELS)[:, :1], atol=1e-6)


def test_a_step_has_no_dropout():
    layer = PredictionNetwork(5, 6, dropout=0.9)
    layer.build((None, None))
    first, _ = layer.step(tf.constant([1]), layer.initial_state(1))
    np.testing.assert_array_equal(layer.step(tf.constant([1]), layer.initial_state(1))[0], first)
    assert np.any(layer(LABELS, training=True).numpy() != layer(LABELS).numpy())
