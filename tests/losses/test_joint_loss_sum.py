import numpy as np
import pytest
import tensorflow as tf

from tests.losses.joints import assert_same, clean, constants, large_batch, logits, unknown_shapes
from tf_rnnt_kd.losses import (
    JointInputs,
    LossWeights,
    alignment_entropy,
    joint_loss_sum,
    joint_losses,
    joint_tiles,
)
from tf_rnnt_kd.losses.blocks import BLOCK_NODES

WEIGHTS = LossWeights(*(np.array(values, np.float32) for values in ([1.0, 0.5, 2.0], [0.3, 0.0, 1e-3])))


def summed(student, teacher, *utterances, weights=WEIGHTS, **options):
    """What `joint_loss_sum` promises: the sum of what `joint_losses` gives, and its rows where they weigh something."""
    losses = joint_losses(student, teacher, *utterances, **options)
    total = losses.transducer * weights.transducer + losses.kl * weights.kl
    entropy = tf.zeros_like(losses.kl)
    if weights.entropy is not None:
        entropy = alignment_entropy(losses.arcs, *utterances[1:])
        total += entropy * weights.entropy
    kl = tf.where(weights.kl > 0.0, losses.kl, 0.0)
    return tf.reduce_sum(total), losses.transducer, kl, entropy


def value_and_gradient(batch, losses=joint_loss_sum, **options):
    student = constants(batch.student)
    options = {"weights": WEIGHTS, **options}
    with tf.GradientTape() as tape:
        tape.watch(student)
        found = losses(student, batch.teacher, *map(tf.constant, batch[2:]), **options)
    return tuple(found)[:4], tape.gradient(found[0], student)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fastemit_lambda": 0.2},
        {"temperature": 2.0, "teacher_delay": 2},
        {"kl": "collapsed", "temperature": 2.0},
        {"kl": "teacher_occupancy", "teacher_delay": 1},
        {"kl": "student_occupancy", "kl_mean": True},
        {"kl": "best_path", "teacher_delay": (0, 2)},
        {"kl": "band", "band_columns": 3},
        {"weights": WEIGHTS._replace(entropy=np.array([0.1, 0.0, -0.2], np.float32))},
    ],
    ids=str,
)
@pytest.mark.parametrize("frames_per_tile", [None, 8])
def test_it_is_the_weighted_sum_of_the_losses(options, frames_per_tile):
    batch = large_batch(0)
    found = value_and_gradient(batch, frames_per_tile=frames_per_tile, **options)
    wanted = value_and_gradient(batch, summed, frames_per_tile=frames_per_tile, **options)
    assert_same(found, wanted, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("kl", ["sequence", "full_sum"])
def test_distances_of_alignments_are_summed_too(kl):
    weights = WEIGHTS._replace(kl=np.array([0.3, 0.1, 1.0], np.float32))
    found, wanted = (value_and_gradient(large_batch(1), f, kl=kl, weights=weights) for f in (joint_loss_sum, summed))
    assert_same(found, wanted, rtol=2e-5, atol=1e-4)


def test_without_teacher_it_is_the_transducer_loss():
    batch = large_batch(2)._replace(teacher=None)
    assert_same(value_and_gradient(batch), value_and_gradient(batch, summed), atol=1e-4)


def test_stored_teacher_logits_equal_the_live_teacher():
    batch = large_batch(3)
    stored = batch._replace(teacher=logits(constants(batch.teacher)))
    assert_same(value_and_gradient(stored, frames_per_tile=8), value_and_gradient(batch), atol=2e-4)


def test_padding_changes_nothing():
    for found, wanted in zip(
        *(tf.nest.flatten(value_and_gradient(b, frames_per_tile=8)) for b in (large_batch(4), clean(large_batch(4)))),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def test_the_gradient_scales_with_the_total_and_rows_have_none():
    batch = clean(large_batch(5))
    student = constants(batch.student)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        losses = joint_loss_sum(student, batch.teacher, *map(tf.constant, batch[2:]), WEIGHTS)
        tripled = 3.0 * losses.total
    wanted = [3.0 * values for values in value_and_gradient(batch)[1]]
    assert_same(list(tape.gradient(tripled, student)), wanted)
    for row in losses[1:]:
        assert all(values is None for values in tape.gradient(row, student))


def test_weights_may_be_variables_and_the_teacher_has_no_gradient():
    batch = clean(large_batch(6))
    variables = [tf.Variable(values) for values in batch.student[2:]]
    teacher = constants(batch.teacher)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(teacher)
        student = JointInputs(*map(tf.constant, batch.student[:2]), *variables)
        total = joint_loss_sum(student, teacher, *map(tf.constant, batch[2:]), WEIGHTS).total
    assert tape.gradient(total, teacher) == JointInputs(None, None, None, None)
    assert_same(tape.gradient(total, variables), list(value_and_gradient(batch)[1][2:]))


def test_half_precision_inputs_get_gradients_of_their_own_dtype():
    batch = clean(large_batch(7))
    rounded = JointInputs(*(tf.cast(values, tf.bfloat16) for values in batch.student))
    losses, gradient = value_and_gradient(batch._replace(student=rounded))
    assert {loss.dtype for loss in losses} == {tf.float32} and {g.dtype for g in gradient} == {tf.bfloat16}


def test_each_tile_of_the_teacher_is_made_once(monkeypatch):
    batch, made = clean(large_batch(8)), []
    make = joint_tiles._teacher_logits

    def recording(task, blocks):
        if task.teacher is not None:
            made.append(len(blocks))
        return make(task, blocks)

    monkeypatch.setattr(joint_tiles, "_teacher_logits", recording)
    value_and_gradient(batch, frames_per_tile=1, weights=WEIGHTS._replace(kl=np.ones([3], np.float32)))
    assert made == [1] * 12  # the blocks that are no padding


@pytest.mark.parametrize(("kept_blocks", "made_again"), [(0, [4, 4]), (4, [4, 4]), (9, [4]), (12, [])])
def test_tiles_are_kept_as_memory_allows(monkeypatch, kept_blocks, made_again):
    batch, made = clean(large_batch(4)), []
    whole = value_and_gradient(batch)
    make = joint_tiles.make_tile

    def recording(task, student, blocks):
        made.append(len(blocks))
        return make(task, student, blocks)

    monkeypatch.setattr(joint_tiles, "make_tile", recording)
    monkeypatch.setattr(joint_tiles, "TILE_FLOATS", 300 * (3 * 5 + 5 * 6))  # 300 nodes are 4 blocks
    monkeypatch.setattr(joint_tiles, "KEPT_FLOATS", kept_blocks * BLOCK_NODES * 6)
    assert_same(value_and_gradient(batch), whole, atol=1e-4)
    # 12 blocks are no padding; for the gradient those that are not in a kept tile, of which there is at least one.
    assert made == [4, 4, 4, *made_again]
    made.clear()
    value_and_gradient(batch._replace(teacher=None))
    # Without a teacher blocks that no alignment reaches are not made again.
    assert made[:3] == [4, 4, 4] and min(1, len(made_again)) <= len(made) - 3 <= len(made_again)


@pytest.mark.parametrize("frames_per_tile", [None, 8])
def test_weights_that_are_nan_are_not_passed_over(frames_per_tile):
    nan = np.full([3], np.nan, np.float32)
    _, gradient = value_and_gradient(
        clean(large_batch(8)), weights=WEIGHTS._replace(transducer=nan), frames_per_tile=frames_per_tile
    )
    assert np.all(np.isnan(gradient.kernel)) and np.all(np.any(np.isnan(gradient.encoded), axis=(1, 2)))


def test_a_class_at_plus_infinity_is_not_passed_over():
    batch = clean(large_batch(8))
    batch.student.bias[0] = np.inf
    _, gradient = value_and_gradient(batch)
    assert np.isnan(gradient.bias[0]) and not np.any(np.all(np.isfinite(gradient.encoded), axis=(1, 2)))


@pytest.mark.parametrize(("frames", "stored"), [(0, False), (3, False), (3, True)])
def test_a_batch_without_any_frame_has_no_alignment_and_no_gradient(frames, stored):
    batch = large_batch(3)
    student, teacher = (
        constants(x._replace(encoded=x.encoded[:, :frames] * np.nan)) for x in (batch.student, batch.teacher)
    )
    lattice = tf.zeros([3, frames, *logits(teacher).shape[2:]]) if stored else teacher
    utterances = tf.constant(batch.labels), tf.zeros([3], tf.int32), tf.constant([11, 3, 1])

    def step(student, teacher):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(student)
            losses = joint_loss_sum(student, teacher, *utterances, WEIGHTS)
            separate = joint_losses(student, teacher, *utterances)
            total = tf.reduce_sum(separate.transducer + separate.kl)
        gradients = tape.gradient(losses.total, student), tape.gradient(total, student)
        return (losses[:2], separate.transducer), (losses.kl, separate.kl, gradients)

    for run in step, tf.function(step), tf.function(step, reduce_retracing=True):
        infinite, nothing = map(tf.nest.flatten, run(student, lattice))
        assert all(np.all(values.numpy() == np.inf) for values in infinite)
        assert all(np.all(values.numpy() == 0.0) for values in nothing)


def test_an_excluded_class_makes_its_own_total_infinite_and_no_gradient_nan():
    batch = clean(large_batch(9))
    batch.student.bias[batch.labels[0, 0]] = -np.inf
    losses, gradient = value_and_gradient(batch, weights=WEIGHTS._replace(kl=np.zeros([3], np.float32)))
    assert losses[0] == np.inf and losses[1][0] == np.inf
    assert all(np.all(np.isfinite(values)) for values in gradient)


@pytest.mark.parametrize(
    ("signature", "compiled"),
    [
        pytest.param(None, True, id="XLA", marks=pytest.mark.slow),
        pytest.param(unknown_shapes(5, 6), False, id="graph, unknown shapes"),
    ],
)
def test_eager_graph_and_xla_agree(signature, compiled):
    batch = large_batch(10)
    arguments = constants(batch.student), constants(batch.teacher), *map(tf.constant, batch[2:])

    def step(student, *rest):
        with tf.GradientTape() as tape:
            tape.watch(student)
            losses = joint_loss_sum(student, *rest, WEIGHTS, frames_per_tile=8, kl="teacher_occupancy")
        return losses, tape.gradient(losses.total, student)

    found = tf.function(step, input_signature=signature, jit_compile=compiled)(*arguments)
    assert_same(found, step(*arguments), atol=1e-4)
