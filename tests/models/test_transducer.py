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
    return outputs_of(model, encoded, predicted)


def both_lattices(model, features, num_features, labels):
    """Those of both passes, [B, 2T, U+2, V]."""
    first, second, _ = model.encode_twice(features, num_features)
    return outputs_of(model, tf.concat([first, second], 1), model.predict_labels(labels))


def outputs_of(model, encoded, predicted):
    logits = model.join(encoded[:, :, None], predicted[:, None])  # [B, T, U+1, V]
    return tf.concat([logits, model.ctc_logits(encoded)[:, :, None]], 2)


@pytest.fixture(scope="module")
def model():
    return tiny.transducer()


@pytest.fixture(scope="module")
def causal():
    return tiny.transducer(causal=True)


@pytest.fixture(scope="module")
def cascade():
    return tiny.transducer(causal=True, second_pass_blocks=1)


@pytest.mark.parametrize("causal", [False, True])
def test_layer(causal):
    inputs = [features(), np.array([32, 32]), LABELS]
    check_layer(lambda: tiny.transducer(causal=causal), inputs, (2, 8, 5, 6), lattice_and_ctc)


def test_layer_of_a_cascade():
    inputs = [features(), np.array([32, 32]), LABELS]
    make = lambda: tiny.transducer(causal=True, second_pass_blocks=1)  # noqa: E731
    check_layer(make, inputs, (2, 16, 5, 6), both_lattices)


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


# -- a second pass --


def test_the_first_pass_of_a_cascade_is_causal_and_the_second_hears_all(cascade):
    changed, full = features(), np.array([32, 32])
    changed[:, 28:] = features(1)[:, 28:]
    first, second, num_frames = cascade.encode_twice(features(), full)
    early, late, _ = cascade.encode_twice(changed, full)
    np.testing.assert_array_equal(early[:, :7], first[:, :7])
    assert np.all(np.any(late.numpy() != second.numpy(), axis=2)) and num_frames.tolist() == [8, 8]


def test_a_cascade_encodes_by_the_pass_it_is_told_to_and_streams_by_the_first(cascade):
    first, second, _ = cascade.encode_twice(features(), LENGTHS)
    assert cascade.causal and not cascade.uses_second_pass
    np.testing.assert_array_equal(cascade.encode(features(), LENGTHS)[0], first)
    streamed, _ = cascade.stream(features(), cascade.initial_encoder_state(2))
    cascade.uses_second_pass = True
    try:
        assert not cascade.causal and cascade.get_config()["uses_second_pass"]
        np.testing.assert_array_equal(cascade.encode(features(), LENGTHS)[0], second)
        np.testing.assert_array_equal(cascade.stream(features(), cascade.initial_encoder_state(2))[0], streamed)
    finally:
        cascade.uses_second_pass = False
    np.testing.assert_allclose(streamed[0], first[0], atol=1e-4)


def test_nan_in_padding_reaches_neither_pass(cascade):
    dirty = features()
    dirty[1, 18:] = np.nan
    *found, _ = cascade.encode_twice(dirty, LENGTHS)
    *expected, _ = cascade.encode_twice(features(), LENGTHS)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1, :4], theirs[1, :4])


def test_a_second_pass_is_built_as_its_encoder_is():
    encoder = ConformerEncoder(16, 1, 2, 3, True, 4, dropout=0.05, rematerialise=True)
    second = Transducer(6, encoder, prediction_width=16, joint_width=12, second_pass_blocks=2).second_pass
    config = second.get_config()
    names = ("width", "num_heads", "kernel_size", "dropout", "rematerialise")
    assert {name: config[name] for name in names} == {name: encoder.get_config()[name] for name in names}
    assert config["num_blocks"] == 2


def test_passes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="second_pass_blocks go on top of a causal encoder"):
        tiny.transducer(second_pass_blocks=1)
    with pytest.raises(ValueError, match="uses_second_pass needs second_pass_blocks"):
        tiny.transducer(causal=True, uses_second_pass=True)


# -- sizes --


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


def test_a_second_pass_adds_its_blocks_and_nothing_else(causal, cascade):
    assert cascade.count_params() - causal.count_params() == conformer_size(16, 3, 1) - conformer_size(16, 3, 0)


def test_layers_of_the_prediction_network_count():
    encoder = ConformerEncoder(16, 1, 2, 3)
    model = Transducer(6, encoder, prediction_width=16, joint_width=12, prediction_layers=2)
    assert model.count_params() == conformer_size(16, 3, 1) + head_size(16, 16, 12, 6, layers=2)


def test_equal_seeds_give_equal_weights():
    for ours, theirs in zip(tiny.transducer(seed=5).weights, tiny.transducer(seed=5).weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
