from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.losses.batches import JointBatch, joint_batch
from tests.losses.joints import assert_same, constants
from tests.oracles import alignments, divergence, joint
from tf_rnnt_kd.losses import AdditiveJoint, band_losses, joint_tile_losses, transducer_loss
from tf_rnnt_kd.losses.pruning import additive_arcs, band_starts

LENGTHS = (21, 12, 4, 9), (9, 6, 2, 0)


class BandBatch(NamedTuple):
    """A joint batch and an additive joint network, NaN in the padding of both."""

    joints: JointBatch
    additive: AdditiveJoint

    def arguments(self):
        joints = self.joints
        rest = map(tf.constant, joints[2:])
        return (
            constants(joints.student),
            constants(joints.teacher),
            AdditiveJoint(*map(tf.constant, self.additive)),
            *rest,
        )


def band_batch(seed, *, frames=21, labels=9, lengths=LENGTHS, vocabulary=6, **options):
    joints = joint_batch(seed, frames=frames, labels=labels, lengths=lengths, vocabulary=vocabulary, **options)
    random = np.random.default_rng(seed + 100)
    acoustic = random.normal(size=(len(joints.labels), frames, vocabulary)).astype(np.float32)
    linguistic = random.normal(size=(len(joints.labels), labels + 1, vocabulary)).astype(np.float32)
    for b in range(len(joints.labels)):
        acoustic[b, joints.num_frames[b] :] = np.nan
        linguistic[b, joints.num_labels[b] + 1 :] = np.inf
    return BandBatch(joints, AdditiveJoint(acoustic, linguistic))


def value_and_gradient(arguments, **options):
    """The three losses, and the gradients of their weighted sum by student and additive network."""
    student, teacher, additive, *rest = arguments
    with tf.GradientTape() as tape:
        tape.watch([student, additive])
        losses = band_losses(student, teacher, additive, *rest, **options)
        total = losses.transducer + 0.3 * losses.kl + 0.5 * losses.additive
    return losses, tape.gradient(total, [student, additive])


def small(batch, b):
    """(acoustic [T, V], linguistic [U+1, V], labels) of one utterance in float64, without padding."""
    frames, count = batch.joints.num_frames[b], batch.joints.num_labels[b]
    acoustic, linguistic = (values[b].astype(np.float64) for values in batch.additive)
    return acoustic[:frames], linguistic[: count + 1], batch.joints.labels_of(b)


@pytest.mark.parametrize("columns", [10, 30])
@pytest.mark.parametrize("options", [{}, {"fastemit_lambda": 0.2, "temperature": 2.0}], ids=str)
def test_a_band_of_all_columns_gives_the_losses_of_the_whole_lattice(columns, options):
    batch = band_batch(0)
    student, teacher, additive, *rest = batch.arguments()
    with tf.GradientTape() as tape:
        tape.watch(student)
        losses = band_losses(student, teacher, additive, *rest, columns=columns, **options)
        total = losses.transducer + 0.3 * losses.kl
    found = tape.gradient(total, student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        transducer, kl = joint_tile_losses(student, teacher, *rest, **options)
        total = transducer + 0.3 * kl
    assert_same([losses.transducer, losses.kl, found], [transducer, kl, tape.gradient(total, student)], atol=1e-4)
    assert not np.any(losses.starts)


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_losses_in_the_band_equal_the_sums_over_its_nodes(columns):
    batch = band_batch(1)
    joints = batch.joints
    losses, _ = value_and_gradient(batch.arguments(), columns=columns)
    whole = joint_tile_losses(constants(joints.student), None, *joints[2:])[0]
    for b in range(4):
        student, teacher = (joint.logits(*joints.utterance(inputs, b)) for inputs in joints[:2])
        starts = losses.starts[b, : len(student)].numpy()
        inside = alignments.in_band(starts, columns, student.shape[1])
        arcs = [x.copy() for x in alignments.arcs_of(student, joints.labels_of(b), 0)]
        arcs[0][~inside] = arcs[1][~inside[:, :-1]] = -np.inf
        with np.errstate(invalid="ignore"):
            wanted = -alignments.log_likelihood_by_loops(*arcs)
        assert float(losses.transducer[b]) == pytest.approx(wanted, rel=1e-5)
        assert float(losses.kl[b]) == pytest.approx(divergence.node_kl(teacher, student)[inside].sum(), rel=1e-5)
        assert losses.transducer[b] >= whole[b] - 1e-4


def test_gradient_in_the_band_equals_finite_differences_through_the_joint():
    batch = band_batch(2, frames=4, labels=3, lengths=((4,), (3,)), width=3, vocabulary=4)
    joints, columns = batch.joints, 2
    losses, (gradient, _) = value_and_gradient(batch.arguments(), columns=columns)
    inside = alignments.in_band(losses.starts[0].numpy(), columns, 4)
    assert not np.all(inside)
    teacher = joint.logits(*joints.utterance(joints.teacher, 0))

    def loss(*inputs):
        student = joint.logits(*inputs)
        blank, label = alignments.arcs_of(student, joints.labels_of(0), 0)
        blank, label = np.where(inside, blank, -np.inf), np.where(inside[:, :-1], label, -np.inf)
        return -alignments.log_likelihood(blank, label) + 0.3 * divergence.node_kl(teacher, student)[inside].sum()

    numeric = joint.finite_differences(loss, joints.utterance(joints.student, 0))
    assert_same([gradient.encoded[0], gradient.predicted[0], *gradient[2:]], numeric, rtol=1e-3, atol=1e-4)


def random_occupancies(seed, num_frames, num_labels):
    """Probabilities that look like those of alignments, anything in the padding."""
    random = np.random.default_rng(seed)
    frames, columns = max(num_frames), max(num_labels) + 1
    occupancy = random.exponential(size=(len(num_frames), frames, columns)).astype(np.float32) ** 4
    for b in range(len(num_frames)):
        occupancy[b, num_frames[b] :] = 0.0
        occupancy[b, :, num_labels[b] + 1 :] = 0.0
    return occupancy


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_bands_let_alignments_through(seed, columns):
    num_frames, num_labels = np.array([25, 14, 9, 1, 25]), np.array([15, 13, 0, 3, 24])
    starts = band_starts(random_occupancies(seed, num_frames, num_labels), num_frames, num_labels, columns).numpy()
    assert starts.shape == (5, 25)
    for b in range(5):
        own = starts[b, : num_frames[b]]
        last = max(num_labels[b] + 1 - columns, 0)
        assert own[0] == 0
        rises = np.diff(starts[b])
        assert np.all(rises >= 0) and np.all(rises < columns)
        assert np.all(starts[b] <= last)
        feasible = num_labels[b] + 1 - columns <= (columns - 1) * (num_frames[b] - 1)
        assert (own[-1] == last) == feasible


@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_bands_equal_those_found_frame_by_frame(seed, columns):
    num_frames, num_labels = np.array([25, 14, 9, 3]), np.array([15, 13, 0, 8])
    occupancy = random_occupancies(seed, num_frames, num_labels)
    starts = band_starts(occupancy, num_frames, num_labels, columns).numpy()
    for b in range(4):
        own = occupancy[b, : num_frames[b], : num_labels[b] + 1]
        assert starts[b, : num_frames[b]].tolist() == alignments.band_starts(own, columns)


def test_a_band_follows_the_only_alignment():
    frames, columns = 12, 3
    occupancy = np.zeros((1, frames, 10), np.float32)
    path = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 8, 9, 9])
    occupancy[0, np.arange(frames), path] = 1.0
    starts = band_starts(occupancy, np.array([frames]), np.array([9]), columns).numpy()[0]
    assert np.all((starts <= path) & (path < starts + columns))


def mixed_scores(acoustic, linguistic, mean, s_l, s_a):
    """Log scores [T, U+1, V]: `(1 - s_l - s_a) both + s_l linguistic + s_a acoustic`."""
    both = alignments.log_softmax(acoustic[:, None] + linguistic[None])
    alone = alignments.log_softmax(linguistic)[None]
    acoustic_alone = alignments.log_softmax(acoustic + np.log(mean))[:, None]
    return (1.0 - s_l - s_a) * both + s_l * alone + s_a * acoustic_alone


@pytest.mark.parametrize("scales", [(0.0, 0.0), (0.25, 0.0), (0.0, 0.3), (0.25, 0.3)])
@pytest.mark.parametrize("blank_id", [0, 4])
def test_arcs_of_the_additive_joint_are_mixtures_of_log_softmaxes(blank_id, scales):
    batch = band_batch(3, blank_id=blank_id)
    options = dict(zip(("linguistic_scale", "acoustic_scale"), scales, strict=True), blank_id=blank_id)
    blank, label = additive_arcs(batch.additive, *batch.joints[2:], **options)
    pieces = [small(batch, b) for b in range(4)]
    mean = np.concatenate([np.exp(alignments.log_softmax(linguistic)) for _, linguistic, _ in pieces]).mean(axis=0)
    for b, (acoustic, linguistic, labels) in enumerate(pieces):
        scores = mixed_scores(acoustic, linguistic, mean, *scales)
        frames, columns = scores.shape[:2]
        np.testing.assert_allclose(blank[b, :frames, :columns], scores[:, :, blank_id], rtol=1e-4, atol=1e-5)
        wanted = scores[:, np.arange(columns - 1), labels]
        np.testing.assert_allclose(label[b, :frames, : columns - 1], wanted, rtol=1e-4, atol=1e-5)


def test_the_additive_loss_and_gradient_are_those_of_the_summed_logits():
    batch = band_batch(4)
    _, _, additive, *rest = arguments = batch.arguments()
    clean = AdditiveJoint(*(tf.where(tf.math.is_finite(values), values, 0.0) for values in additive))
    with tf.GradientTape() as tape:
        tape.watch(clean)
        wanted = transducer_loss(clean.acoustic[:, :, None] + clean.linguistic[:, None], *rest)
    losses, (_, gradient) = value_and_gradient(arguments, linguistic_scale=0.0)
    assert_same(losses.additive, wanted)
    assert_same(gradient, [0.5 * values for values in tape.gradient(wanted, clean)])


@pytest.mark.parametrize("scales", [(0.25, 0.0), (0.25, 0.3)])
def test_gradient_of_the_mixed_additive_loss_equals_finite_differences(scales):
    batch = band_batch(5, frames=3, labels=2, lengths=((3,), (2,)), vocabulary=4)
    _, (_, gradient) = value_and_gradient(
        batch.arguments(), linguistic_scale=scales[0], acoustic_scale=scales[1], columns=2
    )
    labels = batch.joints.labels_of(0)

    def loss(acoustic, linguistic):
        mean = np.exp(alignments.log_softmax(linguistic)).mean(axis=0)
        scores = mixed_scores(acoustic, linguistic, mean, *scales)
        blank, label = scores[:, :, 0], scores[:, np.arange(2), labels]
        return -0.5 * alignments.log_likelihood(blank, label)

    numeric = joint.finite_differences(loss, small(batch, 0)[:2])
    assert_same([values[0] for values in gradient], numeric, rtol=1e-3, atol=1e-4)


def test_the_band_sends_no_gradient_to_the_additive_joint_and_the_additive_loss_none_to_the_student():
    batch = band_batch(6)
    student, teacher, additive, *rest = batch.arguments()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([student, teacher, additive])
        losses = band_losses(student, teacher, additive, *rest)
    assert not any(np.any(values) for values in tape.gradient(losses.transducer, additive) if values is not None)
    assert not any(np.any(values) for values in tape.gradient(losses.kl, additive) if values is not None)
    assert not any(np.any(values) for values in tape.gradient(losses.additive, student) if values is not None)
    assert not any(np.any(values) for values in tape.gradient(losses.kl, teacher) if values is not None)


def test_without_teacher_kl_is_zero_and_the_rest_unchanged():
    student, teacher, *rest = band_batch(7).arguments()
    alone, with_teacher = (band_losses(student, model, *rest) for model in (None, teacher))
    assert not np.any(alone.kl)
    assert_same([alone[0], *alone[2:]], [with_teacher[0], *with_teacher[2:]])


@pytest.mark.parametrize("columns", [1, 5])
def test_a_batch_without_labels(columns):
    batch = band_batch(8, labels=0, lengths=((21, 4), (0, 0)))
    student, teacher, _, *rest = arguments = batch.arguments()
    losses, gradients = value_and_gradient(arguments, columns=columns)
    wanted = joint_tile_losses(student, teacher, *rest)
    assert_same([losses.transducer, losses.kl], wanted)
    for values in tf.nest.flatten(gradients):
        assert np.all(np.isfinite(values)) and np.any(values)


@pytest.mark.parametrize(("num_frames", "columns"), [(2, 2), (3, 3), (1, 5)])
def test_a_band_that_cannot_reach_the_last_label_has_no_alignment_and_no_gradient(num_frames, columns):
    batch = band_batch(9, lengths=((num_frames, 21), (9, 9)))
    losses, (gradient, additive) = value_and_gradient(batch.arguments(), columns=columns)
    assert losses.transducer[0] == np.inf and np.isfinite(losses.transducer[1])
    assert np.all(np.isfinite(losses.additive)) and np.all(np.isfinite(losses.kl))
    student, _, additive_joint, *rest = batch.arguments()
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = band_losses(student, None, additive_joint, *rest, columns=columns).transducer
    alone = tape.gradient(loss, student)
    assert not np.any(alone.encoded[0]) and not np.any(alone.predicted[0]) and np.any(alone.encoded[1])
    for values in tf.nest.flatten([gradient, additive, alone]):
        assert np.all(np.isfinite(values))


def test_padding_changes_nothing():
    batch = band_batch(10)
    found = value_and_gradient(batch.arguments())
    clean = tf.nest.map_structure(
        lambda x: tf.where(tf.math.is_finite(x), x, 0.0) if x.dtype == tf.float32 else x, list(batch.arguments())
    )
    for values, wanted in zip(tf.nest.flatten(found), tf.nest.flatten(value_and_gradient(clean)), strict=True):
        assert np.all(np.isfinite(values))
        np.testing.assert_array_equal(values, wanted)


def test_more_padding_changes_nothing():
    batch = band_batch(11)
    student, teacher, additive, labels, *lengths = batch.arguments()

    def wider(inputs):
        first = tf.pad(inputs[0], [[0, 0], [0, 5], [0, 0]], constant_values=np.nan)
        second = tf.pad(inputs[1], [[0, 0], [0, 3], [0, 0]], constant_values=np.nan)
        return type(inputs)(first, second, *inputs[2:])

    labels_wider = tf.pad(labels, [[0, 0], [0, 3]])
    losses, gradients = value_and_gradient((student, teacher, additive, labels, *lengths))
    found, found_gradients = value_and_gradient((*map(wider, (student, teacher, additive)), labels_wider, *lengths))
    assert_same(found[:3], losses[:3])
    for ours, wanted in zip(found_gradients, gradients, strict=True):
        assert_same([ours[0][:, :21], ours[1][:, :10], *ours[2:]], list(wanted), atol=1e-4)
        assert not np.any(ours[0][:, 21:]) and not np.any(ours[1][:, 10:])


def test_int64_lengths_and_labels_are_accepted():
    *inputs, labels, num_frames, num_labels = band_batch(12).arguments()
    wide = [tf.cast(values, tf.int64) for values in (labels, num_frames, num_labels)]
    assert_same(value_and_gradient((*inputs, *wide)), value_and_gradient((*inputs, labels, num_frames, num_labels)))


def test_half_precision_gives_float32_and_its_own_gradient_dtype():
    student, teacher, additive, *rest = band_batch(13).arguments()
    student, additive = (type(x)(*(tf.cast(values, tf.bfloat16) for values in x)) for x in (student, additive))
    losses, gradients = value_and_gradient((student, teacher, additive, *rest))
    assert {values.dtype for values in losses[:3]} == {tf.float32}
    assert {values.dtype for values in tf.nest.flatten(gradients)} == {tf.bfloat16}


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph, unknown shapes", "XLA"]
)
def test_eager_graph_and_xla_agree(compiled):
    arguments = band_batch(15).arguments()
    signature = None
    if not compiled:
        known = {5: (None, None, 5), 6: (None, None, 6)}
        signature = tf.nest.map_structure(
            lambda x: tf.TensorSpec(known[x.shape[2]] if x.shape.rank == 3 else x.shape, x.dtype), list(arguments)
        )
        signature[3:] = [tf.TensorSpec([None, None], tf.int32), *[tf.TensorSpec([None], tf.int32)] * 2]
    found = tf.function(lambda *a: value_and_gradient(a), input_signature=signature, jit_compile=compiled)(*arguments)
    assert_same(found, value_and_gradient(arguments), atol=1e-4)
