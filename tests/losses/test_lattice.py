import math

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import alignments
from tests.oracles.joint import finite_differences
from tf_rnnt_kd.losses import lattice

SHAPES = [(1, 0), (1, 1), (1, 3), (3, 0), (2, 2), (4, 2), (2, 4), (4, 4)]


def random_arcs(frames, labels, seed=0):
    random = np.random.default_rng(seed)
    # Not normalised on purpose: the recursion knows nothing of distributions.
    return random.normal(size=(frames, labels + 1)) * 3, random.normal(size=(frames, labels)) * 3


def tensors(log_blank, log_label, padding=0):
    """One lattice as a batch of one, inside `padding` frames and labels of NaN."""
    frames, labels = log_label.shape
    blank = np.full((1, frames + padding, labels + 1 + padding), np.nan, np.float32)
    label = np.full((1, frames + padding, labels + padding), np.nan, np.float32)
    blank[0, :frames, : labels + 1], label[0, :frames, :labels] = log_blank, log_label
    return tf.constant(blank), tf.constant(label), tf.constant([frames]), tf.constant([labels])


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(("frames", "labels"), SHAPES)
def test_sum_and_posteriors_equal_enumeration_whatever_the_padding(frames, labels, padding):
    arcs = random_arcs(frames, labels)
    forward = lattice.sum_alignments(*tensors(*arcs, padding))
    np.testing.assert_allclose(forward.log_likelihood, [alignments.log_likelihood(*arcs)], rtol=1e-5, atol=1e-5)
    blank, label = lattice.arc_posteriors(forward)
    expected_blank, expected_label = alignments.arc_posteriors(*arcs)
    pad = [(0, padding), (0, padding)]
    np.testing.assert_allclose(blank[0], np.pad(expected_blank, pad), atol=1e-5)
    np.testing.assert_allclose(label[0], np.pad(expected_label, pad), atol=1e-5)


def test_every_diagonal_holds_one_alignment():
    frames, labels = 9, 6
    blank, label = lattice.arc_posteriors(lattice.sum_alignments(*tensors(*random_arcs(frames, labels), 1)))
    occupancy = blank[0].numpy()[:frames, : labels + 1]
    occupancy[:, :labels] += label[0].numpy()[:frames, :labels]
    sums = [np.trace(np.fliplr(occupancy), offset) for offset in range(labels, -frames, -1)]
    np.testing.assert_allclose(sums, 1.0, atol=1e-5)


def test_every_frame_ends_with_one_blank_and_every_label_leaves_once():
    blank, label = lattice.arc_posteriors(lattice.sum_alignments(*tensors(*random_arcs(8, 5))))
    np.testing.assert_allclose(tf.reduce_sum(blank, axis=2), np.ones((1, 8)), atol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(label, axis=1), np.ones((1, 5)), atol=1e-5)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(("frames", "labels"), SHAPES)
def test_occupancies_equal_enumeration_and_are_the_sum_of_the_arcs(frames, labels, padding):
    arcs = random_arcs(frames, labels)
    forward = lattice.sum_alignments(*tensors(*arcs, padding))
    node, blank, label, log_likelihood = lattice.occupancies(*tensors(*arcs, padding))
    pad = [(0, padding), (0, padding)]
    np.testing.assert_allclose(node[0], np.pad(alignments.occupancies(*arcs), pad), atol=1e-5)
    np.testing.assert_array_equal(node, blank + np.pad(label, [(0, 0), (0, 0), (0, 1)]))
    for found, wanted in zip((blank, label), lattice.arc_posteriors(forward), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_array_equal(log_likelihood, forward.log_likelihood)


def cost_and_gradients(arcs, costs, padding=0):
    """`expected_cost` of one lattice and its gradients by the four tensors; padding is NaN."""
    values = [*tensors(*arcs, padding)[:2], *tensors(*costs, padding)[:2]]
    with tf.GradientTape() as tape:
        tape.watch(values)
        mean = lattice.expected_cost(*values, *tensors(*arcs, padding)[2:])
    return mean, tape.gradient(mean, values)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(("frames", "labels"), SHAPES)
def test_expected_cost_equals_enumeration_whatever_the_padding(frames, labels, padding):
    arcs, costs = random_arcs(frames, labels), random_arcs(frames, labels, seed=1)
    mean, gradients = cost_and_gradients(arcs, costs, padding)
    np.testing.assert_allclose(mean, [alignments.expected_cost(*arcs, *costs)], rtol=1e-4, atol=1e-4)
    for values in gradients:
        assert np.all(np.isfinite(values))
        assert not np.any(values[0, frames:])
    posteriors = alignments.arc_posteriors(*arcs)
    for found, wanted in zip(gradients[2:], posteriors, strict=True):
        np.testing.assert_allclose(found[0], np.pad(wanted, [(0, padding), (0, padding)]), atol=1e-5)


@pytest.mark.parametrize(("frames", "labels"), [(3, 0), (1, 3), (3, 2), (2, 4)])
def test_gradient_of_expected_cost_equals_finite_differences(frames, labels):
    arcs, costs = random_arcs(frames, labels), random_arcs(frames, labels, seed=1)
    numeric = finite_differences(alignments.expected_cost, [*arcs, *costs])
    for found, wanted in zip(cost_and_gradients(arcs, costs, padding=1)[1], numeric, strict=True):
        inside = found[0].numpy()[tuple(map(slice, wanted.shape))]
        np.testing.assert_allclose(inside, wanted, atol=1e-4)
        assert np.count_nonzero(found) == np.count_nonzero(inside)


def test_expected_cost_of_a_batch_weighs_utterances_by_what_comes_from_above():
    arcs, costs = random_arcs(4, 2), random_arcs(4, 2, seed=1)
    values = [tf.repeat(x, 3, axis=0) for x in (*tensors(*arcs, 1)[:2], *tensors(*costs, 1)[:2])]
    with tf.GradientTape() as tape:
        tape.watch(values)
        mean = lattice.expected_cost(*values, tf.constant([4, 4, 4]), tf.constant([2, 2, 2]))
        total = tf.reduce_sum(mean * [1.0, -2.0, 0.0])
    np.testing.assert_allclose(mean, [alignments.expected_cost(*arcs, *costs)] * 3, rtol=1e-4)
    for found, alone in zip(tape.gradient(total, values), cost_and_gradients(arcs, costs, 1)[1], strict=True):
        np.testing.assert_allclose(found, tf.concat([alone, -2.0 * alone, 0.0 * alone], axis=0), atol=1e-5)


def test_the_mean_cost_of_a_lattice_without_alignment_is_zero():
    arcs, costs = random_arcs(3, 2), random_arcs(3, 2, seed=1)
    arcs[1][:, 1] = -np.inf
    mean, gradients = cost_and_gradients(arcs, costs, padding=1)
    assert mean.numpy().tolist() == [0.0]
    for values in gradients:
        assert not np.any(values)


@pytest.mark.parametrize("cost", [np.inf, -np.inf, np.nan])
def test_the_cost_of_an_arc_that_nobody_can_take_does_not_count(cost):
    arcs, costs = random_arcs(3, 2), random_arcs(3, 2, seed=1)
    arcs[1][1, 0] = -np.inf
    wanted = alignments.expected_cost(*arcs, *costs)
    costs[1][1, 0] = cost
    mean, gradients = cost_and_gradients(arcs, costs, padding=1)
    np.testing.assert_allclose(mean, [wanted], rtol=1e-4)
    for values in gradients:
        assert np.all(np.isfinite(values))


def test_an_infinite_cost_that_alignments_pay_makes_the_mean_infinite():
    arcs, costs = random_arcs(3, 2), random_arcs(3, 2, seed=1)
    costs[0][1, 1] = np.inf
    assert cost_and_gradients(arcs, costs)[0].numpy().tolist() == [np.inf]


def test_infinite_costs_off_the_lattice_are_harmless():
    arcs, costs = random_arcs(3, 2), random_arcs(3, 2, seed=1)
    wanted = alignments.expected_cost(*arcs, *costs)
    costs[0][2, 0] = np.inf  # leaves the last frame before the last label
    mean, gradients = cost_and_gradients(arcs, costs)
    np.testing.assert_allclose(mean, [wanted], rtol=1e-4)
    for values in gradients:
        assert np.all(np.isfinite(values))


@pytest.mark.parametrize("compiled", [False, True])
def test_expected_cost_is_the_same_in_graph_and_xla(compiled):
    arcs, costs = random_arcs(4, 3), random_arcs(4, 3, seed=1)

    def step(*values):
        with tf.GradientTape() as tape:
            tape.watch(values[:4])
            mean = lattice.expected_cost(*values)
        return mean, tape.gradient(mean, values[:4])

    values = [*tensors(*arcs, 1)[:2], *tensors(*costs, 1)[:2], *tensors(*arcs)[2:]]
    unknown = [*[tf.TensorSpec([None, None, None])] * 4, *[tf.TensorSpec([None], tf.int32)] * 2]
    signature = None if compiled else unknown
    found = tf.function(step, input_signature=signature, jit_compile=compiled)(*values)
    for ours, wanted in zip(tf.nest.flatten(found), tf.nest.flatten(step(*values)), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("frames", "labels"), SHAPES)
def test_best_path_equals_enumeration(frames, labels, seed):
    arcs = random_arcs(frames, labels, seed)
    found, score = lattice.best_path(*tensors(*arcs, 2))
    expected, expected_score = alignments.best_path(*arcs)
    assert found[0].numpy().tolist() == [*expected, -1, -1]
    assert float(score[0]) == pytest.approx(expected_score, abs=1e-4)


def test_of_equal_alignments_the_earliest_is_best():
    found, _ = lattice.best_path(*tensors(np.zeros((5, 4)), np.zeros((5, 3))))
    assert found[0].numpy().tolist() == [0, 0, 0]


def test_a_lattice_without_alignment_has_no_weight_and_no_posterior():
    log_blank, log_label = random_arcs(3, 2)
    log_label[:, 1] = -np.inf
    forward = lattice.sum_alignments(*tensors(log_blank, log_label))
    blank, label = lattice.arc_posteriors(forward)
    found, score = lattice.best_path(*tensors(log_blank, log_label))
    assert forward.log_likelihood.numpy().tolist() == [-np.inf] == score.numpy().tolist()
    assert not np.any(blank) and not np.any(label)
    assert found[0].numpy().tolist() == [-1, -1]


def test_arcs_at_the_lowest_float_count_as_missing():
    log_blank, log_label = random_arcs(3, 2)
    log_label[:2, 1] = np.finfo(np.float32).min
    forward = lattice.sum_alignments(*tensors(log_blank, log_label))
    log_label[:2, 1] = -np.inf
    np.testing.assert_allclose(forward.log_likelihood, [alignments.log_likelihood(log_blank, log_label)], rtol=1e-5)


def test_an_utterance_of_nothing_costs_nothing():
    arcs = tf.fill([1, 2, 3], np.nan), tf.fill([1, 2, 2], np.nan)
    assert lattice.sum_alignments(*arcs, tf.constant([0]), tf.constant([0])).log_likelihood.numpy().tolist() == [0.0]
    without_frames = lattice.sum_alignments(*arcs, tf.constant([0]), tf.constant([1]))
    assert without_frames.log_likelihood.numpy().tolist() == [-np.inf]


def test_float32_holds_on_a_long_lattice():
    frames, labels, vocabulary = 500, 100, 4096
    arcs = -math.log(vocabulary) * np.ones((frames, labels + 1)), -math.log(vocabulary) * np.ones((frames, labels))
    forward = tf.function(lattice.sum_alignments)(*tensors(*arcs))
    blank, _ = tf.function(lattice.arc_posteriors)(forward)

    def log_binomial(n, k):
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    log_paths = log_binomial(frames - 1 + labels, labels)
    np.testing.assert_allclose(
        forward.log_likelihood, [log_paths - (frames + labels) * math.log(vocabulary)], rtol=1e-6
    )
    t, u = 249, 50  # alignments to here, times those from the head of the blank arc
    through = log_binomial(t + u, u) + log_binomial(frames - 2 - t + labels - u, labels - u)
    assert float(blank[0, t, u]) == pytest.approx(math.exp(through - log_paths), rel=1e-3)


def test_batches_known_from_one_argument_only_are_known_from_all():
    arcs = [tf.TensorSpec([None, None, None])] * 2
    known = tf.function(
        lambda *lattice_: (lattice.best_path(*lattice_), lattice.occupancies(*lattice_)),
        input_signature=[*arcs, tf.TensorSpec([2], tf.int32), tf.TensorSpec([None], tf.int32)],
    )
    inputs = tf.zeros([2, 3, 3]), tf.zeros([2, 3, 2]), tf.constant([3, 2]), tf.constant([2, 1])
    tf.nest.map_structure(
        np.testing.assert_allclose, known(*inputs), (lattice.best_path(*inputs), lattice.occupancies(*inputs))
    )
