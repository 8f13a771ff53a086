import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import ctc
from tests.oracles.joint import finite_differences
from tf_rnnt_kd.losses.ctc import ctc_loss

VOCABULARY = 4


def ctc_batch(seed, *, blank_id=0, frames=4, labels=3):
    """(logits, labels, num_frames, num_labels) of possible utterances and one of repeated labels; NaN in padding."""
    random = np.random.default_rng(seed)
    num_frames = np.array([frames, frames, 3, 1], np.int32)
    num_labels = np.array([labels, 2, 2, 1], np.int32)
    logits = random.normal(size=(4, frames + 1, VOCABULARY)).astype(np.float32)
    classes = [k for k in range(VOCABULARY) if k != blank_id]
    targets = np.array([random.permutation(classes)[:labels] for _ in range(4)], np.int32)
    targets[1, :2] = classes[0]
    for b in range(4):
        logits[b, num_frames[b] :] = np.nan
        targets[b, num_labels[b] :] = classes[-1]
    return logits, targets, num_frames, num_labels


def value_and_gradient(logits, *rest, **options):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = ctc_loss(logits, *map(tf.constant, rest), **options)
    return loss, tape.gradient(loss, logits)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("blank_id", range(VOCABULARY))
def test_value_equals_enumeration_for_any_blank(blank_id, compiled):
    logits, labels, num_frames, num_labels = batch = ctc_batch(blank_id, blank_id=blank_id)
    loss, gradient = value_and_gradient(*batch, blank_id=blank_id, compiled=compiled)
    wanted = [ctc.ctc_loss(logits[b, : num_frames[b]], labels[b, : num_labels[b]], blank_id) for b in range(4)]
    assert np.all(np.isfinite(wanted))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_equals_finite_differences_and_is_zero_in_padding(compiled):
    logits, labels, num_frames, num_labels = batch = ctc_batch(5, blank_id=2)
    _, gradient = value_and_gradient(*batch, blank_id=2, compiled=compiled)
    for b in (0, 1, 3):
        (wanted,) = finite_differences(
            lambda z, b=b: ctc.ctc_loss(z, labels[b, : num_labels[b]], 2), [logits[b, : num_frames[b]]]
        )
        np.testing.assert_allclose(gradient[b, : num_frames[b]], wanted, atol=1e-5)
        assert not np.any(gradient[b, num_frames[b] :])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_padding_changes_nothing(garbage, compiled):
    logits, labels, num_frames, num_labels = ctc_batch(6)
    clean, garbled = np.nan_to_num(logits), np.where(np.isnan(logits), garbage, logits).astype(np.float32)
    found = value_and_gradient(garbled, labels, num_frames, num_labels, compiled=compiled)
    wanted = value_and_gradient(clean, labels, num_frames, num_labels, compiled=compiled)
    for values, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("blank_id", [0, 3])
def test_what_cannot_be_scored_has_no_loss_and_no_gradient_and_spoils_no_neighbour(blank_id, compiled):
    logits, labels, _, _ = ctc_batch(7, blank_id=blank_id)
    label, other = (k for k in range(1, 3) if k != blank_id)
    labels[:] = [[label, other, label], [label, label, other], [label, label, label], [label, other, label]]
    # Too few frames; too few for a repeated label; no frames; no labels.
    num_frames, num_labels = np.array([2, 2, 0, 4], np.int32), np.array([3, 2, 1, 0], np.int32)
    for b in range(2):
        assert ctc.ctc_loss(logits[b, : num_frames[b]], labels[b, : num_labels[b]], blank_id) == np.inf
    options = {"blank_id": blank_id, "compiled": compiled}
    logits[0] = np.inf
    loss, gradient = value_and_gradient(logits, labels, num_frames, num_labels, **options)
    assert loss.numpy().tolist() == [0.0] * 4
    assert not np.any(gradient)

    possible = ctc_batch(8, blank_id=blank_id)
    together = [np.concatenate(pair) for pair in zip((logits, labels, num_frames, num_labels), possible, strict=True)]
    found, found_gradient = value_and_gradient(*together, **options)
    wanted, wanted_gradient = value_and_gradient(*possible, **options)
    np.testing.assert_allclose(found[4:], wanted, rtol=1e-6)
    np.testing.assert_allclose(found_gradient[4:], wanted_gradient, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_without_labels_has_no_loss(compiled):
    logits, _, num_frames, _ = ctc_batch(12)
    loss, gradient = value_and_gradient(
        logits, np.zeros((4, 0), np.int32), num_frames, np.zeros(4, np.int32), compiled=compiled
    )
    assert loss.numpy().tolist() == [0.0] * 4
    assert not np.any(gradient)


def test_just_enough_frames_have_one_path():
    logits = np.random.default_rng(9).normal(size=(1, 3, VOCABULARY)).astype(np.float32)
    log_probs = tf.nn.log_softmax(logits).numpy()[0]
    for compiled in (False, True):
        loss = ctc_loss(logits, np.array([[2, 2]]), np.array([3]), np.array([2]), compiled=compiled)
        np.testing.assert_allclose(loss, [-log_probs[0, 2] - log_probs[1, 0] - log_probs[2, 2]], rtol=1e-5)


def test_half_precision_gives_float32_and_its_own_gradient_dtype():
    logits, *rest = ctc_batch(10)
    half = tf.cast(logits, tf.bfloat16)
    loss, gradient = value_and_gradient(half, *rest)
    assert loss.dtype == tf.float32 and gradient.dtype == tf.bfloat16
    np.testing.assert_allclose(loss, value_and_gradient(tf.cast(half, tf.float32), *rest)[0], rtol=1e-5)


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}], ids=["graph", "XLA"])
def test_eager_graph_and_xla_agree(mode):
    arguments = [tf.constant(values) for values in ctc_batch(11)]
    compiled = bool(mode)

    def step(logits, *rest):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = ctc_loss(logits, *rest, compiled=compiled)
        return loss, tape.gradient(loss, logits)

    for values, wanted in zip(tf.function(step, **mode)(*arguments), step(*arguments), strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
