import numpy as np
import pytest
import tensorflow as tf

from tests.losses.test_transducer import VECTORS, needs_vectors
from tests.oracles import alignments
from tests.oracles.joint import finite_differences
from tf_rnnt_kd.losses import Arcs, alignment_entropy, full_sum_distance, sequence_kl

SHAPES = [(1, 0), (1, 3), (3, 0), (2, 2), (4, 2), (4, 4)]


def random_arcs(frames, labels, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(frames, labels + 1)) * 2, random.normal(size=(frames, labels)) * 2


def batch_of(*lattices, padding=1):
    """Arcs of several lattices as one batch with NaN in the padding, and their lengths."""
    frames, labels = np.transpose([label.shape for _, label in lattices]).astype(np.int32)
    blank = np.full((len(lattices), max(frames) + padding, max(labels) + padding + 1), np.nan, np.float32)
    label = np.full((len(lattices), max(frames) + padding, max(labels) + padding), np.nan, np.float32)
    for b, arcs in enumerate(lattices):
        blank[b, : frames[b], : labels[b] + 1], label[b, : frames[b], : labels[b]] = arcs
    return Arcs(tf.constant(blank), tf.constant(label)), tf.constant(frames), tf.constant(labels)


def value_and_gradient(function, arcs, *lengths):
    """Of a function of one lattice."""
    with tf.GradientTape() as tape:
        tape.watch(arcs)
        value = function(arcs, *lengths)
    return value.numpy(), tape.gradient(value, arcs)


def assert_gradient(found, wanted, index):
    """`found` is `wanted` inside the lattice and nothing outside of it."""
    for ours, expected in zip(found, wanted, strict=True):
        inside = ours[index].numpy()[tuple(map(slice, expected.shape))]
        np.testing.assert_allclose(inside, expected, atol=1e-4)
        assert np.count_nonzero(ours[index]) == np.count_nonzero(inside)


PAIRWISE = {sequence_kl: alignments.sequence_kl, full_sum_distance: alignments.full_sum_distance}


def test_entropy_equals_enumeration_in_a_ragged_batch():
    lattices = [random_arcs(*shape) for shape in SHAPES]
    wanted = [alignments.alignment_entropy(*arcs) for arcs in lattices]
    np.testing.assert_allclose(alignment_entropy(*batch_of(*lattices)), wanted, rtol=1e-4, atol=1e-5)


def test_gradient_of_the_entropy_equals_finite_differences():
    lattices = [random_arcs(3, 2), random_arcs(1, 2), random_arcs(2, 0)]
    _, gradient = value_and_gradient(alignment_entropy, *batch_of(*lattices))
    for b, arcs in enumerate(lattices):
        assert_gradient(gradient, finite_differences(alignments.alignment_entropy, arcs), b)


def test_equal_alignments_have_the_entropy_of_their_number():
    zeros = np.zeros((5, 4)), np.zeros((5, 3))
    np.testing.assert_allclose(alignment_entropy(*batch_of(zeros)), [np.log(35)], rtol=1e-6)


def test_entropy_does_not_depend_on_what_all_alignments_share():
    blank, label = random_arcs(4, 3)
    found = alignment_entropy(*batch_of((blank, label), (blank - 5.0, label + 2.0)))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


@pytest.mark.parametrize("function", PAIRWISE, ids=lambda function: function.__name__)
def test_distance_equals_enumeration_in_a_ragged_batch(function):
    teachers, students = ([random_arcs(*shape, seed) for shape in SHAPES] for seed in (0, 1))
    wanted = [PAIRWISE[function](*arcs) for arcs in zip(teachers, students, strict=True)]
    found = function(batch_of(*teachers)[0], *batch_of(*students))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", PAIRWISE, ids=lambda function: function.__name__)
def test_gradient_by_the_student_equals_finite_differences(function):
    shapes = [(3, 2), (1, 2), (2, 0)]
    teachers, students = ([random_arcs(*shape, seed) for shape in shapes] for seed in (0, 1))
    teacher = batch_of(*teachers)[0]
    _, gradient = value_and_gradient(lambda arcs, *rest: function(teacher, arcs, *rest), *batch_of(*students))
    for b, (ours, theirs) in enumerate(zip(teachers, students, strict=True)):
        oracle = PAIRWISE[function]
        numeric = finite_differences(lambda *arcs, ours=ours, oracle=oracle: oracle(ours, arcs), theirs)
        assert_gradient(gradient, numeric, b)


def test_gradient_of_the_sequence_kl_is_the_difference_of_the_posteriors():
    teacher, student = random_arcs(4, 3, 0), random_arcs(4, 3, 1)
    _, gradient = value_and_gradient(lambda *rest: sequence_kl(batch_of(teacher)[0], *rest), *batch_of(student))
    pairs = zip(alignments.arc_posteriors(*student), alignments.arc_posteriors(*teacher), strict=True)
    assert_gradient(gradient, [ours - theirs for ours, theirs in pairs], 0)


@pytest.mark.parametrize("function", PAIRWISE, ids=lambda function: function.__name__)
def test_a_student_like_its_teacher_is_at_distance_zero_without_gradient(function):
    arcs, *lengths = batch_of(random_arcs(4, 3), random_arcs(2, 1))
    value, gradient = value_and_gradient(lambda student, *rest: function(arcs, student, *rest), arcs, *lengths)
    np.testing.assert_allclose(value, [0.0, 0.0], atol=1e-5)
    for values in gradient:
        np.testing.assert_allclose(values, np.zeros(values.shape), atol=1e-6)


def test_sequence_kl_does_not_see_a_shift_of_all_alignments_and_the_full_sum_does():
    blank, label = random_arcs(4, 3)
    teacher, *lengths = batch_of((blank, label))
    student = batch_of((blank - 0.5, label))[0]
    np.testing.assert_allclose(sequence_kl(teacher, student, *lengths), [0.0], atol=1e-5)
    np.testing.assert_allclose(full_sum_distance(teacher, student, *lengths), [2.0], rtol=1e-5)


@pytest.mark.parametrize("function", PAIRWISE, ids=lambda function: function.__name__)
def test_teacher_has_no_gradient(function):
    teacher, *lengths = batch_of(random_arcs(3, 2))
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        value = function(teacher, batch_of(random_arcs(3, 2, 1))[0], *lengths)
    assert tape.gradient(value, teacher) == Arcs(None, None)


def test_an_alignment_only_the_student_excludes_is_infinitely_far():
    teacher, (blank, label) = random_arcs(3, 2), random_arcs(3, 2, 1)
    label[1, 0] = -np.inf
    inputs = batch_of((blank, label))
    value, gradient = value_and_gradient(lambda *rest: sequence_kl(batch_of(teacher)[0], *rest), *inputs)
    assert value.tolist() == [np.inf]
    for values in gradient:
        assert np.all(np.isfinite(values))


def test_an_alignment_that_both_exclude_adds_nothing():
    teacher, student = random_arcs(3, 2), random_arcs(3, 2, 1)
    teacher[1][1, 0] = student[1][1, 0] = -np.inf
    found = sequence_kl(batch_of(teacher)[0], *batch_of(student))
    np.testing.assert_allclose(found, [alignments.sequence_kl(teacher, student)], rtol=1e-4)
    found = alignment_entropy(*batch_of(teacher))
    np.testing.assert_allclose(found, [alignments.alignment_entropy(*teacher)], rtol=1e-4)


def test_lattices_without_alignment_are_at_distance_zero_without_gradient():
    blank, label = random_arcs(3, 2)
    label[:, 1] = -np.inf
    arcs, *lengths = batch_of((blank, label), random_arcs(3, 2))
    for function in (
        alignment_entropy,
        lambda student, *rest: sequence_kl(arcs, student, *rest),
        lambda student, *rest: full_sum_distance(arcs, student, *rest),
    ):
        value, gradient = value_and_gradient(function, arcs, *lengths)
        assert value[0] == 0.0 and np.isfinite(value[1])
        for values in gradient:
            assert not np.any(values[0]) and np.all(np.isfinite(values))


def test_full_sum_takes_lattices_of_different_padding():
    teacher, student = random_arcs(3, 2), random_arcs(3, 2, 1)
    wanted = full_sum_distance(batch_of(teacher, padding=0)[0], *batch_of(student, padding=0))
    arcs = batch_of(teacher, padding=0)[0]
    wider = Arcs(*(tf.pad(values, [[0, 0], [0, 4], [0, 0]]) for values in arcs))
    found = full_sum_distance(wider, *batch_of(student, padding=0))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def arcs_of(case):
    blank, label = np.array(case["blank"], np.float64), np.array(case["label"], np.float64)
    return blank, label[:, :-1]


@needs_vectors
def test_published_entropy():
    case = VECTORS["sequence_kl"]["path_sum"]
    inputs = batch_of(arcs_of(case))
    np.testing.assert_allclose(alignment_entropy(*inputs), [case["alignment_entropy_nats"]], rtol=1e-5)
    assert sorted(alignments.path_scores(*arcs_of(case))[1]) == sorted(case["path_scores"])
    np.testing.assert_allclose(alignments.log_likelihood(*arcs_of(case)), -case["cost"], rtol=1e-9)


@needs_vectors
def test_published_sequence_kl():
    case = VECTORS["sequence_kl"]["divergence"]
    lattices = [arcs_of(case[name]) for name in ("P", "Q")]
    first, second = (batch_of(arcs)[0] for arcs in lattices)
    lengths = batch_of(lattices[0])[1:]
    forward = case["kl_P_given_Q_forward_sum_p_logp_minus_logq"]
    reverse = case["kl_Q_given_P_reverse_sum_q_logq_minus_logp"]
    np.testing.assert_allclose(sequence_kl(first, second, *lengths), [forward], rtol=1e-5)
    np.testing.assert_allclose(sequence_kl(second, first, *lengths), [reverse], rtol=1e-5)
    np.testing.assert_allclose(full_sum_distance(first, second, *lengths), [0.0], atol=1e-6)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "XLA"])
def test_eager_graph_and_xla_agree(compiled):
    teacher, *lengths = batch_of(random_arcs(4, 3), random_arcs(2, 1))
    student = batch_of(random_arcs(4, 3, 2), random_arcs(2, 1, 2))[0]

    def step(teacher, student, *lengths):
        with tf.GradientTape() as tape:
            tape.watch(student)
            values = [function(teacher, student, *lengths) for function in PAIRWISE]
            values.append(alignment_entropy(student, *lengths))
            total = tf.add_n(values)
        return values, tape.gradient(total, student)

    unknown = Arcs(*[tf.TensorSpec([None, None, None])] * 2)
    signature = None if compiled else [unknown, unknown, *[tf.TensorSpec([None], tf.int32)] * 2]
    arguments = teacher, student, *lengths
    found = tf.function(step, input_signature=signature, jit_compile=compiled)(*arguments)
    for values, wanted in zip(tf.nest.flatten(found), tf.nest.flatten(step(*arguments)), strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)
