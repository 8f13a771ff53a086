import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.losses.batches import lattice_batch
from tests.oracles import alignments
from tests.oracles.joint import finite_differences
from tf_rnnt_kd.losses import best_alignment, lattice, transducer_loss


def loss_and_gradient(logits, labels, num_frames, num_labels, **options):
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = transducer_loss(logits, tf.constant(labels), tf.constant(num_frames), tf.constant(num_labels), **options)
    return loss.numpy(), tape.gradient(loss, logits).numpy()


def expected(batch, blank_id=0, fastemit_lambda=0.0):
    gradient = np.zeros(batch.student.shape)
    loss = []
    for b in range(len(batch.labels)):
        logits, labels = batch.utterance(batch.student, b), batch.labels_of(b)
        loss.append(alignments.transducer_loss(logits, labels, blank_id))
        batch.utterance(gradient, b)[...] = alignments.transducer_gradient(logits, labels, blank_id, fastemit_lambda)
    return loss, gradient


@pytest.mark.parametrize("seed", range(12))
def test_value_and_gradient_equal_enumeration_for_any_shape_and_blank(seed):
    random = np.random.default_rng(seed)
    vocabulary = int(random.integers(2, 7))
    blank_id = int(random.integers(vocabulary))
    frames, labels = (int(size) for size in random.integers((1, 0), (5, 5)))
    batch = lattice_batch(seed, frames=frames, labels=labels, vocabulary=vocabulary, blank_id=blank_id)
    loss, gradient = loss_and_gradient(batch.student, *batch[2:], blank_id=blank_id)
    expected_loss, expected_gradient = expected(batch, blank_id)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_oracle_gradient_equals_finite_differences():
    batch = lattice_batch(3, batch=1, frames=3, labels=2, vocabulary=3)
    logits, labels = batch.student[0], batch.labels[0]
    (numeric,) = finite_differences(lambda z: alignments.transducer_loss(z, labels, 0), [logits])
    np.testing.assert_allclose(alignments.transducer_gradient(logits, labels, 0), numeric, atol=1e-8)


def test_oracle_by_loops_equals_enumeration():
    arcs = alignments.arcs_of(np.random.default_rng(0).normal(size=(4, 4, 5)), [1, 2, 3], 0)
    assert alignments.log_likelihood_by_loops(*arcs) == pytest.approx(alignments.log_likelihood(*arcs), abs=1e-12)


def published_vectors():
    path = os.environ.get("RNNT_VECTORS", "")
    if not os.path.isfile(path):
        return None
    with open(path) as file:
        return json.load(file)


VECTORS = published_vectors()
needs_vectors = pytest.mark.skipif(VECTORS is None, reason="RNNT_VECTORS does not name a file of published vectors")
STANDARD = [case for case in (VECTORS or {}).get("rnnt_loss", []) if "logits" in case]


@needs_vectors
@pytest.mark.parametrize("case", STANDARD, ids=lambda case: case["name"])
def test_published_vectors(case):
    logits = np.array(case["logits"], np.float32)
    labels = np.array(case["labels"], np.int32).reshape(len(logits), -1)
    lengths = np.array(case["logit_lengths"], np.int32), np.array(case["label_lengths"], np.int32)
    weight = case.get("fastemit_lambda", 0.0)
    loss, gradient = loss_and_gradient(logits, labels, *lengths, blank_id=case["blank"], fastemit_lambda=weight)
    reference = case["reference_float64"]
    np.testing.assert_allclose(loss, reference.get("cost", reference.get("cost_nll")), rtol=1e-6)
    np.testing.assert_allclose(gradient, reference["grad_logits"], atol=1e-6)
    if "published_cost" in case:
        np.testing.assert_allclose(loss, case["published_cost"], rtol=1e-6)
    if "published_grad_logits" in case:
        np.testing.assert_allclose(gradient, case["published_grad_logits"], rtol=1e-3, atol=1e-6)
    if "published_cost_rule" in case:  # NeMo multiplies the value too; here FastEmit leaves it alone
        np.testing.assert_allclose(loss * (1 + weight), case["published_cost_rule"], rtol=1e-6)


@needs_vectors
@pytest.mark.parametrize("name", ["additive_joint_B1_T2_U2_V5", "additive_joint_empty_label_T2_U0_V2"])
def test_published_gradients_through_an_additive_joint(name):
    case = next(case for case in VECTORS["rnnt_loss"] if case["name"] == name)
    emissions, predictions = tf.constant(case["emissions"]), tf.constant(case["predictions"])
    labels = tf.reshape(tf.constant(case["labels"], tf.int32), [1, -1])
    with tf.GradientTape() as tape:
        tape.watch([emissions, predictions])
        logits = emissions[:, :, None] + predictions[:, None]
        loss = transducer_loss(logits, labels, tf.constant(case["logit_lengths"]), tf.constant(case["label_lengths"]))
    gradients = tape.gradient(loss, [emissions, predictions])
    np.testing.assert_allclose(loss, case["reference_float64"]["cost"], rtol=1e-6)
    np.testing.assert_allclose(gradients[0], case["reference_float64"]["grad_emissions"], atol=1e-6)
    np.testing.assert_allclose(gradients[1], case["reference_float64"]["grad_predictions"], atol=1e-6)


@pytest.mark.parametrize(("frames", "labels", "vocabulary"), [(1, 0, 2), (1, 5, 7), (2, 2, 5), (10, 2, 4), (40, 17, 9)])
def test_uniform_logits_have_a_closed_form(frames, labels, vocabulary):
    loss, _ = loss_and_gradient(
        np.full((1, frames, labels + 1, vocabulary), 0.1, np.float32),
        np.ones((1, labels), np.int32),
        [frames],
        [labels],
    )
    paths = math.comb(frames - 1 + labels, labels)
    np.testing.assert_allclose(loss, [(frames + labels) * math.log(vocabulary) - math.log(paths)], rtol=1e-5)


def test_one_frame_emits_all_labels():
    batch = lattice_batch(1, batch=2, frames=1, labels=4)
    np.testing.assert_allclose(loss_and_gradient(batch.student, *batch[2:])[0], expected(batch)[0], rtol=1e-5)


def test_more_labels_than_frames_are_possible():
    batch = lattice_batch(1, batch=1, frames=2, labels=4)
    loss, gradient = loss_and_gradient(batch.student, *batch[2:])
    np.testing.assert_allclose(loss, expected(batch)[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected(batch)[1], atol=1e-5)


def test_a_batch_without_labels_counts_the_blanks():
    batch = lattice_batch(2, labels=0)
    loss, gradient = loss_and_gradient(batch.student, *batch[2:])
    np.testing.assert_allclose(loss, expected(batch)[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected(batch)[1], atol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_does_not_change_loss_or_gradient(garbage):
    batch = lattice_batch(4)
    clean, garbled = np.array(batch.student), np.array(batch.student)
    for b in range(len(clean)):
        inside = np.zeros(clean.shape[1:3], bool)
        inside[: batch.num_frames[b], : batch.num_labels[b] + 1] = True
        clean[b][~inside], garbled[b][~inside] = 0.0, garbage
    labels = np.where(batch.labels < 0, 10**6, batch.labels)
    for found, wanted in zip(
        loss_and_gradient(garbled, labels, *batch[3:]), loss_and_gradient(clean, *batch[2:]), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_an_excluded_label_makes_loss_infinite_and_gradient_zero():
    batch = lattice_batch(5, batch=2)
    batch.student[0, :, 1, batch.labels[0, 1]] = -np.inf
    loss, gradient = loss_and_gradient(batch.student, *batch[2:])
    assert loss[0] == np.inf and np.isfinite(loss[1])
    assert not np.any(gradient[0]) and np.any(gradient[1]) and np.all(np.isfinite(gradient))


def test_an_excluded_class_that_no_alignment_needs_is_harmless():
    batch = lattice_batch(6, batch=1, vocabulary=6)
    unused = next(k for k in range(1, 6) if k not in batch.labels)
    batch.student[..., unused] = -np.inf
    batch.student[0, :2, 1, batch.labels[0, 1]] = -np.inf  # one label must wait for frame 2
    loss, gradient = loss_and_gradient(batch.student, *batch[2:])
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(loss, expected(batch)[0], rtol=1e-5)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[..., unused])


def test_a_logit_at_plus_infinity_stays_visible():
    logits = np.random.default_rng(0).normal(size=[2, 4, 3, 6]).astype(np.float32)
    logits[0, 1, 1, 3] = np.inf  # of a class that no alignment needs there
    loss, gradient = loss_and_gradient(logits, [[1, 2], [3, 4]], [4, 4], [2, 2])
    assert not np.isfinite(loss[0]) and not np.all(np.isfinite(gradient[0]))
    assert np.isfinite(loss[1]) and np.all(np.isfinite(gradient[1]))


def test_a_node_without_any_class_is_no_way_through():
    batch = lattice_batch(7, batch=1, frames=3, labels=2)
    batch.student[0, 1, 1] = -np.inf
    loss, gradient = loss_and_gradient(batch.student, *batch[2:])
    blank, label = alignments.arcs_of(np.nan_to_num(batch.student[0], neginf=0.0), batch.labels[0], 0)
    blank[1, 1] = label[1, 1] = -np.inf
    np.testing.assert_allclose(loss, [-alignments.log_likelihood(blank, label)], rtol=1e-5)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[0, 1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_large_logits_keep_their_precision(seed):
    batch = lattice_batch(seed, batch=2, frames=30, labels=12, vocabulary=8, scale=200.0)
    loss, gradient = loss_and_gradient(batch.student, *batch[2:])
    for b in range(2):
        arcs = alignments.arcs_of(batch.utterance(batch.student, b), batch.labels_of(b), 0)
        assert loss[b] == pytest.approx(-alignments.log_likelihood_by_loops(*arcs), rel=1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float64])
def test_any_floating_dtype_gives_float32_and_its_own_gradient_dtype(dtype):
    batch = lattice_batch(8)
    logits = tf.cast(batch.student, dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = transducer_loss(logits, *batch[2:])
    rounded = batch._replace(student=tf.cast(logits, tf.float32).numpy())
    assert loss.dtype == tf.float32
    assert tape.gradient(loss, logits).dtype == dtype
    np.testing.assert_allclose(loss, expected(rounded)[0], rtol=1e-5)


def test_int64_lengths_and_labels_are_accepted():
    batch = lattice_batch(8)
    found = transducer_loss(batch.student, *(tf.constant(values, tf.int64) for values in batch[2:]))
    np.testing.assert_array_equal(found, transducer_loss(batch.student, *batch[2:]))


@pytest.mark.parametrize("fastemit_lambda", [0.01, 1.0])
def test_fastemit_scales_label_gradients_and_not_the_value(fastemit_lambda):
    batch = lattice_batch(9)
    loss, gradient = loss_and_gradient(batch.student, *batch[2:], fastemit_lambda=fastemit_lambda)
    expected_loss, expected_gradient = expected(batch, fastemit_lambda=fastemit_lambda)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_upstream_gradient_weighs_utterances():
    batch = lattice_batch(10)
    logits = tf.constant(batch.student)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(transducer_loss(logits, *batch[2:]) * [2.0, 0.0, -1.0])
    wanted = expected(batch)[1] * np.array([2.0, 0.0, -1.0])[:, None, None, None]
    np.testing.assert_allclose(tape.gradient(loss, logits), wanted, atol=1e-5)


def step(logits, labels, num_frames, num_labels):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = transducer_loss(logits, labels, num_frames, num_labels, fastemit_lambda=0.1)
    return loss, tape.gradient(loss, logits)


UNKNOWN = [
    tf.TensorSpec([None, None, None, None]),
    tf.TensorSpec([None, None], tf.int32),
    tf.TensorSpec([None], tf.int32),
    tf.TensorSpec([None], tf.int32),
]


@pytest.mark.parametrize(
    ("signature", "compiled", "labels"),
    [
        pytest.param(None, True, 4, id="XLA", marks=pytest.mark.slow),
        pytest.param(None, True, 0, id="XLA, no labels", marks=pytest.mark.slow),
        pytest.param(UNKNOWN, False, 4, id="graph, unknown shapes"),
        pytest.param(UNKNOWN, True, 4, id="XLA, unknown shapes"),
    ],
)
def test_eager_graph_and_xla_agree(signature, compiled, labels):
    batch = lattice_batch(11, labels=labels)
    arguments = [tf.constant(values) for values in batch[1:]]
    found = tf.function(step, input_signature=signature, jit_compile=compiled)(*arguments)
    for values, wanted in zip(found, step(*arguments), strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)


def test_value_alone_runs_no_backward_recursion(monkeypatch):
    runs = []
    backward = lattice._backward
    monkeypatch.setattr(lattice, "_backward", lambda *arguments: runs.append(1) or backward(*arguments))
    tf.function(transducer_loss, input_signature=UNKNOWN).get_concrete_function()
    assert len(runs) == 0
    tf.function(step, input_signature=UNKNOWN).get_concrete_function()
    assert len(runs) == 1


@pytest.mark.parametrize("seed", range(4))
def test_best_alignment_equals_enumeration(seed):
    batch = lattice_batch(seed, vocabulary=4)
    frames, score = best_alignment(*batch[1:])
    for b in range(len(batch.labels)):
        arcs = alignments.arcs_of(batch.utterance(batch.student, b), batch.labels_of(b), 0)
        expected_frames, expected_score = alignments.best_path(*arcs)
        count = batch.num_labels[b]
        assert frames[b, :count].numpy().tolist() == expected_frames
        assert np.all(frames[b, count:] == -1)
        assert float(score[b]) == pytest.approx(expected_score, abs=1e-4)


def test_best_alignment_compiles():
    arguments = [tf.constant(values) for values in lattice_batch(12)[1:]]
    for found, wanted in zip(
        tf.function(best_alignment, jit_compile=True)(*arguments), best_alignment(*arguments), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.slow
def test_replicas_give_what_one_device_gives():
    # In a process of its own: logical devices must be made before TensorFlow touches any.
    subprocess.run([sys.executable, "-m", "tests.losses.replicas"], check=True, timeout=300)
