import numpy as np
import pytest
import tensorflow as tf

from tests.losses.batches import joint_batch
from tests.losses.joints import assert_same, clean, constants, large_batch, logits, step, value_and_gradient
from tests.oracles import alignments, divergence, joint
from tf_rnnt_kd.losses import (
    Arcs,
    JointInputs,
    closest_delay,
    joint_losses,
    joint_tile_losses,
    lattice_kl,
    transducer_loss,
)

WEIGHTED = ["teacher_occupancy", "student_occupancy", "best_path", "band"]
NODEWISE = ["lattice", "collapsed", *WEIGHTED]
WHOLE = ["sequence", "full_sum"]
COLUMNS = 2


def node_weights(kl, teacher, student, labels):
    """The weights of one utterance's nodes [T, U+1]; logits [T, U+1, V]."""
    arcs = alignments.arcs_of(teacher, labels, 0)
    if kl == "teacher_occupancy":
        return alignments.occupancies(*arcs)
    if kl == "student_occupancy":
        return alignments.occupancies(*alignments.arcs_of(student, labels, 0))
    if kl == "best_path":
        return alignments.best_path_nodes(*arcs)
    if kl == "band":
        starts = alignments.band_starts(alignments.occupancies(*arcs), COLUMNS)
        return alignments.in_band(starts, COLUMNS, len(labels) + 1).astype(np.float64)
    return np.ones(teacher.shape[:2])


def distance(kl, teacher, student, labels, *, delay=0, temperature=1.0, mean=False, weights=None):
    """The KL of one utterance, from logits [T, U+1, V]; node by node the student's (t + delay) with the teacher's t."""
    if kl in WHOLE:
        pair = [alignments.arcs_of(z, labels, 0) for z in (teacher, student)]
        return getattr(alignments, {"sequence": "sequence_kl", "full_sum": "full_sum_distance"}[kl])(*pair)
    if weights is None:
        weights = node_weights(kl, teacher, student, labels)
    matched = max(len(student) - delay, 0)
    weights = weights[delay:] if kl == "student_occupancy" else weights[:matched]
    if kl == "collapsed":
        nodes = divergence.collapsed_node_kl(teacher[:matched], student[delay:], labels, 0, temperature)
    else:
        nodes = divergence.node_kl(teacher[:matched], student[delay:], temperature)
    total = (weights * nodes).sum()
    return total / max(weights.sum(), 1e-30) if mean else total


def small_batch(seed, **sizes):
    return joint_batch(seed, frames=5, labels=3, lengths=((5, 3, 1), (3, 2, 1)), **sizes)


def wanted_distances(batch, kl, **options):
    logits = [[joint.logits(*batch.utterance(inputs, b)) for b in range(3)] for inputs in batch[:2]]
    students, teachers = logits
    return [distance(kl, teachers[b], students[b], batch.labels_of(b), **options) for b in range(3)]


@pytest.mark.parametrize("kl", [*NODEWISE, *WHOLE])
def test_each_reading_equals_enumeration(kl):
    for seed in range(3):
        batch = small_batch(seed)
        found = joint_losses(constants(batch.student), batch.teacher, *batch[2:], kl=kl, band_columns=COLUMNS)
        np.testing.assert_allclose(found.kl, wanted_distances(batch, kl), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kl", NODEWISE)
@pytest.mark.parametrize(
    "options", [{"mean": True}, {"delay": 1}, {"delay": 2, "mean": True}, {"temperature": 2.0, "delay": 1}], ids=str
)
def test_options_of_each_reading_equal_enumeration(kl, options):
    batch = small_batch(3)
    names = {"mean": "kl_mean", "delay": "teacher_delay", "temperature": "temperature"}
    ours = {names[name]: value for name, value in options.items()}
    found = joint_losses(constants(batch.student), batch.teacher, *batch[2:], kl=kl, band_columns=COLUMNS, **ours)
    np.testing.assert_allclose(found.kl, wanted_distances(batch, kl, **options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kl", "options"),
    [
        *((kl, {}) for kl in [*NODEWISE, *WHOLE]),
        *((kl, {"delay": 1, "mean": True, "temperature": 2.0}) for kl in ("collapsed", *WEIGHTED)),
    ],
    ids=str,
)
def test_gradient_equals_finite_differences_through_the_joint(kl, options):
    batch = joint_batch(2, batch=1, frames=3, labels=2, width=3, vocabulary=4)
    labels = batch.labels[0]
    teacher = joint.logits(*batch.utterance(batch.teacher, 0))
    weights = None
    if kl not in WHOLE:
        weights = node_weights(kl, teacher, joint.logits(*batch.utterance(batch.student, 0)), labels)

    def loss(*inputs):
        student = joint.logits(*inputs)
        kl_value = distance(kl, teacher, student, labels, weights=weights, **options)
        return alignments.transducer_loss(student, labels, 0) + 0.3 * kl_value

    numeric = joint.finite_differences(loss, batch.utterance(batch.student, 0))
    names = {"mean": "kl_mean", "delay": "teacher_delay", "temperature": "temperature"}
    ours = {names[name]: value for name, value in options.items()}
    found = value_and_gradient(batch, frames_per_tile=2, kl=kl, band_columns=COLUMNS, **ours)[2]
    assert_same([found.encoded[0], found.predicted[0], *found[2:]], numeric, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kl", [*NODEWISE, *WHOLE])
def test_the_size_of_the_tiles_changes_no_reading(kl):
    batch = large_batch(4)
    whole = value_and_gradient(batch, kl=kl)
    assert_same(value_and_gradient(batch, kl=kl, frames_per_tile=8), whole, atol=1e-4)


@pytest.mark.parametrize("kl", [*NODEWISE, *WHOLE])
def test_padding_changes_no_reading(kl):
    batch = large_batch(5)
    found = value_and_gradient(batch, kl=kl, frames_per_tile=8)
    for values, wanted in zip(
        tf.nest.flatten(found),
        tf.nest.flatten(value_and_gradient(clean(batch), kl=kl, frames_per_tile=8)),
        strict=True,
    ):
        np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("kl", [*NODEWISE, *WHOLE])
def test_a_student_like_its_teacher_learns_nothing_from_it(kl):
    batch = large_batch(6)
    batch = batch._replace(teacher=batch.student)
    _, distances, gradient = value_and_gradient(batch, 10.0, kl=kl, frames_per_tile=8)
    np.testing.assert_allclose(distances, np.zeros(3), atol=1e-4)
    assert_same(gradient, value_and_gradient(batch, 0.0)[2], atol=2e-4)


@pytest.mark.parametrize("kl", [*NODEWISE, *WHOLE])
def test_the_teacher_has_no_gradient_and_the_transducer_loss_does_not_see_it(kl):
    batch = small_batch(7)
    teacher = constants(batch.teacher)
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        losses = joint_losses(constants(batch.student), teacher, *batch[2:], kl=kl)
    assert tape.gradient(losses.kl, teacher) == JointInputs(None, None, None, None)
    alone = joint_losses(constants(batch.student), None, *batch[2:], kl=kl)
    np.testing.assert_allclose(losses.transducer, alone.transducer, rtol=1e-6)
    assert not np.any(alone.kl)


def test_a_band_of_all_columns_is_the_whole_lattice():
    batch = large_batch(8)
    for columns in (12, 40):
        found = value_and_gradient(batch, kl="band", band_columns=columns)
        assert_same(found, value_and_gradient(batch, kl="lattice"), atol=1e-4)


def test_kl_mean_is_the_kl_of_a_node():
    batch = large_batch(9)
    total, mean = (joint_tile_losses(*batch, kl_mean=kl_mean)[1] for kl_mean in (False, True))
    np.testing.assert_allclose(mean * np.array([37 * 12, 20 * 4, 5 * 1]), total, rtol=1e-5)


def test_occupancy_weights_of_an_utterance_sum_to_its_arcs():
    batch = large_batch(10)
    for kl in ("teacher_occupancy", "student_occupancy", "best_path"):
        total, mean = (joint_tile_losses(*batch, kl=kl, kl_mean=kl_mean)[1] for kl_mean in (False, True))
        np.testing.assert_allclose(total / mean, batch.num_frames + batch.num_labels, rtol=1e-4)


def test_the_arcs_are_the_students_with_gradient():
    batch = large_batch(11)
    student = constants(batch.student)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        losses = joint_losses(student, batch.teacher, *batch[2:], frames_per_tile=8)
        occupied = tf.reduce_sum(losses.arcs.log_blank)
    for b in range(3):
        arcs = alignments.arcs_of(joint.logits(*batch.utterance(batch.student, b)), batch.labels_of(b), 0)
        for found, wanted in zip(losses.arcs, arcs, strict=True):
            inside = found[b].numpy()[tuple(map(slice, wanted.shape))]
            np.testing.assert_allclose(inside, wanted, rtol=1e-4, atol=1e-4)
    assert np.any(tape.gradient(occupied, student).encoded)


@pytest.mark.parametrize(("delay", "frames_per_tile"), [(1, None), (2, 8), (9, 8), (50, 8)])
def test_teacher_delay_pairs_later_student_frames_with_earlier_teacher_frames(delay, frames_per_tile):
    batch = clean(large_batch(12))
    found = value_and_gradient(batch, teacher_delay=delay, frames_per_tile=frames_per_tile)

    def shifted(student, teacher, labels, num_frames, num_labels):
        z, z_teacher = logits(student), logits(constants(teacher))
        kept = max(z.shape[1] - delay, 0)
        kl = lattice_kl(z_teacher[:, :kept], z[:, delay:], tf.maximum(num_frames - delay, 0), num_labels)
        return transducer_loss(z, labels, num_frames, num_labels), kl

    assert_same(found, value_and_gradient(batch, losses=shifted), rtol=1e-4, atol=1e-4)


def late_student(delay, seed=13, **sizes):
    """A batch whose student is its teacher `delay` frames later."""
    batch = clean(joint_batch(seed, frames=20, labels=6, lengths=((20, 17, 12), (6, 4, 0)), **sizes))
    late = np.roll(batch.student.encoded, delay, axis=1)
    late[:, :delay] = np.random.default_rng(seed).normal(size=late[:, :delay].shape)
    return batch._replace(teacher=batch.student, student=batch.student._replace(encoded=late))


def arcs_of(inputs, batch):
    return joint_losses(constants(inputs), None, *batch[2:]).arcs


@pytest.mark.parametrize("delay", [0, 1, 3, 4])
def test_the_closest_delay_is_the_one_by_which_the_student_is_late(delay):
    batch = late_student(delay)
    arcs = arcs_of(batch.teacher, batch), arcs_of(batch.student, batch)
    assert int(closest_delay(*arcs, *batch[3:], (0, 1, 2, 3, 4))) == delay
    assert int(closest_delay(*arcs, *batch[3:], (4, 3, 2, 1, 0))) == delay


def three_classes(blank, label):
    """Log-probabilities of blank, next label and rest of each node, as `closest_delay` reads them."""
    probabilities = np.stack([np.exp(blank), np.pad(np.exp(label), [(0, 0), (0, 1)])], axis=-1)
    rest = np.maximum(1.0 - probabilities.sum(axis=-1, keepdims=True), 1e-7)
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(np.concatenate([probabilities, rest], axis=-1)), -16.0)


@pytest.mark.parametrize("seed", range(6))
def test_the_closest_delay_has_the_least_mean_kl_where_the_teacher_goes(seed):
    batch = small_batch(seed, vocabulary=3)
    delays = (0, 1, 2, 3)
    totals, weights = np.zeros(4), np.zeros(4)
    for b in range(3):
        teacher, student = (
            alignments.arcs_of(joint.logits(*batch.utterance(inputs, b)), batch.labels_of(b), 0)
            for inputs in (batch.teacher, batch.student)
        )
        occupancy = alignments.occupancies(*teacher)
        theirs, ours = three_classes(*teacher), three_classes(*student)
        for i, delay in enumerate(delays):
            kept = max(len(occupancy) - delay, 0)
            kl = (np.exp(theirs[:kept]) * (theirs[:kept] - ours[delay:])).sum(axis=-1)
            totals[i] += (occupancy[:kept] * kl).sum()
            weights[i] += occupancy[:kept].sum()
    arcs = arcs_of(batch.teacher, batch), arcs_of(batch.student, batch)
    assert int(closest_delay(*arcs, *batch[3:], delays)) == np.argmin(totals / weights)


def test_a_delay_that_leaves_nothing_to_compare_is_not_the_closest():
    batch = late_student(1)
    arcs = arcs_of(batch.teacher, batch), arcs_of(batch.student, batch)
    assert int(closest_delay(*arcs, *batch[3:], (30, 2, 1))) == 1
    assert int(closest_delay(*arcs, *batch[3:], (30, 40))) == 30


def test_of_equally_close_delays_the_first_is_taken():
    arcs = Arcs(tf.fill([1, 4, 3], -1.0), tf.fill([1, 4, 2], -1.0))
    assert int(closest_delay(arcs, arcs, tf.constant([4]), tf.constant([2]), (2, 1, 0))) == 2


def test_padding_does_not_change_the_closest_delay():
    batch = late_student(2)
    arcs = arcs_of(batch.teacher, batch), arcs_of(batch.student, batch)
    garbled = []
    for values in arcs:
        blank, label = (x.numpy() for x in values)
        for b in range(3):
            for x in (blank[b], label[b]):
                x[batch.num_frames[b] :] = np.nan
            blank[b, :, batch.num_labels[b] + 1 :] = np.nan
            label[b, :, batch.num_labels[b] :] = np.nan
        garbled.append(Arcs(tf.constant(blank), tf.constant(label)))
    assert int(closest_delay(*garbled, *batch[3:], (0, 1, 2, 3))) == 2


@pytest.mark.parametrize("kl", NODEWISE)
def test_several_delays_are_the_closest_one(kl):
    batch = late_student(2)
    wanted = value_and_gradient(batch, kl=kl, teacher_delay=2)
    assert_same(value_and_gradient(batch, kl=kl, teacher_delay=(0, 1, 2, 4), frames_per_tile=8), wanted, atol=1e-4)
    if kl in ("lattice", "collapsed"):
        np.testing.assert_allclose(wanted[1], np.zeros(3), atol=1e-4)


def test_a_single_delay_may_stand_in_a_tuple():
    batch = large_batch(14)
    assert_same(value_and_gradient(batch, teacher_delay=(3,)), value_and_gradient(batch, teacher_delay=3))


def test_a_student_that_excludes_what_the_teacher_visits_is_infinitely_far():
    batch = small_batch(15)
    batch.student.bias[batch.labels[0, 0]] = -np.inf
    for kl in (*NODEWISE, "sequence"):
        if kl == "student_occupancy":
            continue
        assert joint_tile_losses(*batch, kl=kl)[1][0] == np.inf
    weight = joint_tile_losses(*batch, kl="student_occupancy")[1]
    assert weight[0] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": "full"}, "kl='full'"),
        ({"teacher_delay": -1}, r"teacher_delay=\(-1,\)"),
        ({"teacher_delay": (2, -1)}, r"teacher_delay=\(2, -1\)"),
        ({"teacher_delay": ()}, r"teacher_delay=\(\)"),
        *(({"kl": kl, "temperature": 2.0}, f"kl='{kl}'.*temperature") for kl in WHOLE),
        *(({"kl": kl, "teacher_delay": 1}, f"kl='{kl}'.*teacher_delay") for kl in WHOLE),
        *(({"kl": kl, "teacher_delay": (0, 1)}, f"kl='{kl}'.*teacher_delay") for kl in WHOLE),
        *(({"kl": kl, "kl_mean": True}, f"kl='{kl}'.*kl_mean") for kl in WHOLE),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        joint_tile_losses(*joint_batch(16), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "compiled"),
    [
        ({"kl": "band", "teacher_delay": (0, 2)}, False),
        ({"kl": "band", "teacher_delay": (0, 2)}, True),
        ({"kl": "best_path", "kl_mean": True}, True),
        ({"kl": "sequence"}, True),
    ],
    ids=str,
)
def test_eager_graph_and_xla_agree(options, compiled):
    batch = large_batch(17)
    arguments = constants(batch.student), constants(batch.teacher), *map(tf.constant, batch[2:])

    def losses(*arguments):
        return step(*arguments, frames_per_tile=8, **options)

    found = tf.function(losses, jit_compile=compiled)(*arguments)
    assert_same(found, losses(*arguments), atol=1e-4)
