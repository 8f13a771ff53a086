import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tests.models.layers import check_layer
from tf_rnnt_kd.losses import JointInputs, joint_tile_losses
from tf_rnnt_kd.models.conformer import ConformerEncoder
from tf_rnnt_kd.models.transducer import Transducer

LABELS = np.array([[1, 4, 4], [3, 0, 0]], np.int32)
LENGTHS = np.array([32, 18], np.int32)


def features(seed=0):
    return np.random.default_rng(seed).standard_normal([2, 32, 80]).astype(np.float32)


def lattice_and_ctc(model, features, num_features, labels):
    """All outputs of a model in one tensor, [B, T, U+2, V]."""
    encoded, _, predicted = model(features, num_features, labels)
    logits = model.join(encoded[:, :, None], predicted[:, None])  # [B, T, U+1, V]
    return tf.concat([logits, model.ctc_logits(encoded)[:, :, None]], 2)


@pytest.fixture(scope="module")
def model():
    return tiny.transducer()


@pytest.fixture(scope="module")
def causal():
    return tiny.transducer(causal=True)


@pytest.mark.parametrize("causal", [False, True])
def test_layer(causal):
    inputs = [features(), np.array([32, 32]), LABELS]
    check_layer(lambda: tiny.transducer(causal=causal), inputs, (2, 8, 5, 6), lattice_and_ctc)


def test_one_training_step_on_its_losses_moves_every_weight():
    model = tiny.transducer()
    variables = [v.value for v in model.trainable_variables]
    before = [v.numpy() for v in variables]
    with tf.GradientTape() as tape:
        encoded, num_frames, predicted = model(features(), LENGTHS, LABELS, training=True)
        student = JointInputs(encoded, predicted, model.joint_kernel, model.joint_bias)
        loss, _ = joint_tile_losses(student, None, LABELS, num_frames, np.array([3, 1]))
        loss = tf.reduce_sum(loss) + tf.reduce_sum(model.ctc_logits(encoded) ** 2)
    gradients = tape.gradient(loss, variables)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.apply(gradients, model.trainable_variables)
    for variable, old, gradient in zip(model.trainable_variables, before, gradients, strict=True):
        assert np.all(np.isfinite(gradient)) and np.any(variable.numpy() != old), variable.path


def test_call_gives_what_its_parts_give(model):
    encoded, num_frames, predicted = model(features(), LENGTHS, LABELS)
    np.testing.assert_array_equal(num_frames, [8, 4])
    np.testing.assert_array_equal(encoded, model.encode(features(), LENGTHS)[0])
    np.testing.assert_array_equal(predicted, model.predict_labels(LABELS))
    assert encoded.shape == (2, 8, 12) and predicted.shape == (2, 4, 12)


def test_logits_are_the_joint_of_the_projections(model):
    encoded, _, predicted = model(features(), LENGTHS, LABELS)
    hidden = np.tanh(encoded.numpy()[:, :, None] + predicted.numpy()[:, None])
    expected = hidden @ model.joint_kernel.numpy() + model.joint_bias.numpy()
    np.testing.assert_allclose(model.join(encoded[:, :, None], predicted[:, None]), expected, atol=1e-5)


def test_nan_and_rubbish_in_padding_change_nothing(model):
    dirty, labels = features(), LABELS.copy()
    dirty[1, 18:] = np.nan
    labels[1, 1:] = 5
    encoded, _, predicted = model(dirty, LENGTHS, labels)
    clean_encoded, _, clean_predicted = model(features(), LENGTHS, LABELS)
    np.testing.assert_array_equal(encoded[0], clean_encoded[0])
    np.testing.assert_array_equal(encoded[1, :4], clean_encoded[1, :4])
    np.testing.assert_array_equal(predicted[1, :2], clean_predicted[1, :2])


def test_one_label_at_a_time_equals_all_at_once(model):
    predicted, state = model.initial_prediction(2)
    outputs = [predicted]
    for u in range(3):
        predicted, state = model.step_prediction(tf.constant(LABELS[:, u]), state)
        outputs.append(predicted)
    np.testing.assert_allclose(tf.stack(outputs, 1), model.predict_labels(LABELS), atol=1e-6)


def test_first_outputs_of_a_causal_model_do_not_depend_on_later_input(causal, model):
    changed = features()
    changed[:, 16:] = features(1)[:, 16:]
    full = np.array([32, 32])
    assert causal.causal and not model.causal
    np.testing.assert_array_equal(causal.encode(changed, full)[0][:, :4], causal.encode(features(), full)[0][:, :4])
    assert np.any(model.encode(changed, full)[0][:, :4].numpy() != model.encode(features(), full)[0][:, :4].numpy())


def test_a_stream_equals_offline(causal):
    state = causal.initial_encoder_state(2)
    signature = [tf.TensorSpec([2, None, 80]), *[tf.TensorSpec(s.shape, s.dtype) for s in state]]
    stream = tf.function(lambda x, *state: causal.stream(x, state), input_signature=signature, autograph=False)
    parts = []
    for start, stop in ((0, 8), (8, 8), (8, 12), (12, 32)):
        frames, state = stream(features()[:, start:stop], *state)
        parts.append(frames)
    offline, _ = causal.encode(features(), np.array([32, 32]))
    np.testing.assert_allclose(tf.concat(parts, 1), offline, atol=1e-4)


def conformer_size(width, kernel, blocks, bins=80):
    norm = 2 * width
    feed_forward = norm + width * 4 * width + 4 * width + 4 * width * width + width
    attention = norm + 3 * width * width + width * width + width
    convolution = norm + width * 2 * width + 2 * width + kernel * width + width + norm + width * width + width
    subsampling = 3 * bins * width + width + 3 * width * width + width + width * width + width
    return subsampling + blocks * (2 * feed_forward + attention + convolution + norm)


def head_size(encoder_width, width, joint_width, vocabulary_size, layers=1):
    lstm = layers * (2 * width * 4 * width + 4 * width)
    joint = encoder_width * joint_width + joint_width + width * joint_width + joint_width
    outputs = 2 * (joint_width * vocabulary_size + vocabulary_size)  # transducer and CTC
    return vocabulary_size * width + lstm + joint + outputs


def test_parameter_count_of_the_small_config():
    encoder = ConformerEncoder(96, 3, 4, 15)
    model = Transducer(17, encoder, prediction_width=96, joint_width=96)
    expected = conformer_size(96, 15, 3) + head_size(96, 96, 96, 17)
    assert model.count_params() == expected
    assert 0.75e6 < expected < 0.85e6


def test_a_causal_model_has_as_many_parameters(model, causal):
    assert model.count_params() == causal.count_params() == conformer_size(16, 3, 1) + head_size(16, 16, 12, 6)


def test_layers_of_the_prediction_network_count():
    encoder = ConformerEncoder(16, 1, 2, 3)
    model = Transducer(6, encoder, prediction_width=16, joint_width=12, prediction_layers=2)
    assert model.count_params() == conformer_size(16, 3, 1) + head_size(16, 16, 12, 6, layers=2)


def test_equal_seeds_give_equal_weights():
    for ours, theirs in zip(tiny.transducer(seed=5).weights, tiny.transducer(seed=5).weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
