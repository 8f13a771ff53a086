import math

import numpy as np
import pytest
import tensorflow as tf

from tests.losses.batches import joint_batch
from tests.oracles import alignments, divergence, joint
from tf_rnnt_kd.losses import (
    JointInputs,
    collapsed_lattice_kl,
    joint_tile_losses,
    joint_tiles,
    lattice_kl,
    transducer_loss,
)


def constants(inputs):
    return JointInputs(*map(tf.constant, inputs))


def clean(batch):
    """The same batch with zeros for NaN and infinity in the padding."""
    student, teacher = (JointInputs(*map(np.nan_to_num, inputs)) for inputs in batch[:2])
    return batch._replace(
        student=student._replace(predicted=np.clip(student.predicted, -9, 9)),
        teacher=teacher._replace(predicted=np.clip(teacher.predicted, -9, 9)),
    )


def logits(inputs):
    return tf.tanh(inputs.encoded[:, :, None] + inputs.predicted[:, None]) @ inputs.kernel + inputs.bias


def value_and_gradient(batch, kl_weight=0.3, losses=joint_tile_losses, **options):
    student = constants(batch.student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        transducer, kl = losses(student, batch.teacher, *map(tf.constant, batch[2:]), **options)
        total = transducer + kl_weight * kl
    return transducer, kl, tape.gradient(total, student)


def stored(student, teacher, labels, num_frames, num_labels, *, kl="lattice", temperature=1.0, **options):
    """The wide functions, on logits that exist as a whole."""
    student, teacher = logits(student), logits(constants(teacher))
    transducer = transducer_loss(student, labels, num_frames, num_labels, **options)
    if kl == "collapsed":
        divergences = collapsed_lattice_kl(teacher, student, labels, num_frames, num_labels, temperature=temperature)
    else:
        divergences = lattice_kl(teacher, student, num_frames, num_labels, temperature=temperature)
    return transducer, divergences


def assert_same(found, wanted, **tolerance):
    for values, expected in zip(tf.nest.flatten(found), tf.nest.flatten(wanted), strict=True):
        np.testing.assert_allclose(values, expected, **({"rtol": 1e-5, "atol": 2e-5} | tolerance))


OPTIONS = [
    {},
    {"fastemit_lambda": 0.2},
    {"temperature": 2.0},
    {"kl": "collapsed"},
    {"kl": "collapsed", "temperature": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tiles_equal_the_losses_on_stored_logits(options):
    batch = clean(joint_batch(0))
    found = value_and_gradient(batch, frames_per_tile=3, **options)
    assert_same(found, value_and_gradient(batch, losses=stored, **options))


def test_the_size_of_the_tiles_changes_nothing():
    batch = joint_batch(0)
    whole = value_and_gradient(batch)
    for frames_per_tile in (1, 4, 7, 100):
        assert_same(value_and_gradient(batch, frames_per_tile=frames_per_tile), whole)


@pytest.mark.parametrize("blank_id", [0, 3, 5])
def test_values_equal_enumeration(blank_id):
    batch = joint_batch(1, frames=4, labels=3, blank_id=blank_id)
    transducer, kl, _ = value_and_gradient(batch, frames_per_tile=2, blank_id=blank_id)
    for b in range(3):
        student, teacher = (joint.logits(*batch.utterance(inputs, b)) for inputs in batch[:2])
        wanted = alignments.transducer_loss(student, batch.labels_of(b), blank_id)
        assert float(transducer[b]) == pytest.approx(wanted, rel=1e-5)
        assert float(kl[b]) == pytest.approx(divergence.lattice_kl(teacher, student), rel=1e-5)


@pytest.mark.parametrize("kl", ["lattice", "collapsed"])
def test_gradient_equals_finite_differences_through_the_joint(kl):
    batch = joint_batch(2, batch=1, frames=3, labels=2, width=3, vocabulary=4)
    labels = batch.labels[0]
    teacher = joint.logits(*batch.utterance(batch.teacher, 0))
    kls = {
        "lattice": lambda student: divergence.lattice_kl(teacher, student),
        "collapsed": lambda student: divergence.collapsed_lattice_kl(teacher, student, labels, 0),
    }

    def loss(*inputs):
        student = joint.logits(*inputs)
        return alignments.transducer_loss(student, labels, 0) + 0.3 * kls[kl](student)

    numeric = joint.finite_differences(loss, batch.utterance(batch.student, 0))
    found = value_and_gradient(batch, frames_per_tile=2, kl=kl)[2]
    assert_same([found.encoded[0], found.predicted[0], *found[2:]], numeric, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("delay", "frames_per_tile"), [(1, None), (2, 3), (9, 3)])
def test_teacher_delay_pairs_later_student_frames_with_earlier_teacher_frames(delay, frames_per_tile):
    batch = clean(joint_batch(3))
    found = value_and_gradient(batch, teacher_delay=delay, frames_per_tile=frames_per_tile)

    def shifted(student, teacher, labels, num_frames, num_labels):
        z, z_teacher = logits(student), logits(constants(teacher))
        kept = max(z.shape[1] - delay, 0)
        kl = lattice_kl(z_teacher[:, :kept], z[:, delay:], tf.maximum(num_frames - delay, 0), num_labels)
        return transducer_loss(z, labels, num_frames, num_labels), kl

    assert_same(found, value_and_gradient(batch, losses=shifted))


@pytest.mark.parametrize(
    ("frames_per_tile", "options"),
    [(None, {}), (2, {}), (2, {"kl": "collapsed"}), (2, {"teacher_delay": 2, "temperature": 2.0})],
    ids=str,
)
def test_stored_teacher_logits_equal_the_live_teacher(frames_per_tile, options):
    batch = joint_batch(4)
    live = value_and_gradient(batch, frames_per_tile=frames_per_tile, **options)
    teacher = logits(constants(batch.teacher))  # NaN in its padding
    exact = value_and_gradient(batch._replace(teacher=teacher), frames_per_tile=frames_per_tile, **options)
    assert_same(exact, live)
    half = tf.cast(teacher, tf.float16)
    assert_same(value_and_gradient(batch._replace(teacher=half), **options), live, rtol=0.01, atol=0.01)


def test_without_teacher_kl_is_zero_and_the_rest_unchanged():
    batch = joint_batch(5)
    transducer, kl, gradient = value_and_gradient(batch._replace(teacher=None), frames_per_tile=3)
    wanted, _, wanted_gradient = value_and_gradient(batch, kl_weight=0.0, frames_per_tile=3)
    assert not np.any(kl)
    assert_same([transducer, gradient], [wanted, wanted_gradient])


@pytest.mark.parametrize("frames_per_tile", [None, 3])
@pytest.mark.parametrize("kl", ["lattice", "collapsed"])
def test_kl_is_zero_when_student_is_teacher(kl, frames_per_tile):
    batch = joint_batch(6)
    batch = batch._replace(teacher=batch.student)
    _, divergences, gradient = value_and_gradient(batch, 10.0, kl=kl, frames_per_tile=frames_per_tile)
    np.testing.assert_array_equal(divergences, np.zeros(3))
    assert_same(gradient, value_and_gradient(batch, 0.0)[2])


def test_teacher_has_no_gradient():
    batch = joint_batch(7)
    teacher = constants(batch.teacher)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(teacher)
        stored_logits = logits(teacher)
        live = joint_tile_losses(constants(batch.student), teacher, *batch[2:])[1]
        kept = joint_tile_losses(constants(batch.student), stored_logits, *batch[2:])[1]
    assert tape.gradient(live, teacher) == JointInputs(None, None, None, None)
    assert tape.gradient(kept, stored_logits) is None


@pytest.mark.parametrize("frames_per_tile", [None, 3])
def test_padding_does_not_change_losses_or_gradient(frames_per_tile):
    batch = joint_batch(8)
    assert np.any(np.isnan(batch.student.encoded)) and np.any(np.isinf(batch.teacher.predicted))
    found = value_and_gradient(batch, frames_per_tile=frames_per_tile)
    for values, wanted in zip(
        tf.nest.flatten(found),
        tf.nest.flatten(value_and_gradient(clean(batch), frames_per_tile=frames_per_tile)),
        strict=True,
    ):
        np.testing.assert_array_equal(values, wanted)


def test_more_padding_does_not_change_losses():
    batch = clean(joint_batch(9))

    def padded(inputs):
        return inputs._replace(
            encoded=np.pad(inputs.encoded, [(0, 0), (0, 3), (0, 0)], constant_values=np.nan),
            predicted=np.pad(inputs.predicted, [(0, 0), (0, 2), (0, 0)], constant_values=np.nan),
        )

    wider = batch._replace(
        student=padded(batch.student),
        teacher=padded(batch.teacher),
        labels=np.pad(batch.labels, [(0, 0), (0, 2)]),
    )
    transducer, kl, gradient = value_and_gradient(wider, frames_per_tile=4)
    found = transducer, kl, gradient.encoded[:, :7], gradient.predicted[:, :5], *gradient[2:]
    assert not np.any(gradient.encoded[:, 7:]) and not np.any(gradient.predicted[:, 5:])
    assert_same(found, value_and_gradient(batch))


@pytest.mark.parametrize("frames_per_tile", [None, 3])
def test_a_batch_without_labels(frames_per_tile):
    batch = clean(joint_batch(10, labels=0))
    assert_same(value_and_gradient(batch, frames_per_tile=frames_per_tile), value_and_gradient(batch, losses=stored))


def test_an_excluded_label_makes_loss_infinite_and_gradient_zero():
    batch = joint_batch(11, batch=1)
    batch.student.bias[batch.labels[0, 0]] = -np.inf
    transducer, _, gradient = value_and_gradient(batch._replace(teacher=None), frames_per_tile=3)
    assert transducer.numpy().tolist() == [np.inf]
    for values in gradient:
        assert not np.any(values)


def test_an_excluded_class_that_nobody_needs_is_harmless():
    batch = joint_batch(12, batch=1, labels=2)
    unused = next(k for k in range(1, 6) if k not in batch.labels)
    batch.student.bias[unused] = batch.teacher.bias[unused] = -np.inf
    for kl in ("lattice", "collapsed"):
        for values in tf.nest.flatten(value_and_gradient(batch, kl=kl)):
            assert np.all(np.isfinite(values))


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float64])
def test_any_floating_dtype_gives_float32_and_its_own_gradient_dtype(dtype):
    batch = joint_batch(13)
    rounded = JointInputs(*(tf.cast(values, dtype) for values in batch.student))
    transducer, kl, gradient = value_and_gradient(batch._replace(student=rounded))
    again = batch._replace(student=JointInputs(*(tf.cast(values, tf.float32) for values in rounded)))
    assert transducer.dtype == kl.dtype == tf.float32
    assert {values.dtype for values in gradient} == {dtype}
    # The same numbers in float32: only the inputs are rounded, no sum is.
    assert_same([transducer, kl], value_and_gradient(again)[:2])


def test_weights_may_be_variables():
    batch = joint_batch(14)
    variables = [tf.Variable(values) for values in batch.student[2:]]
    with tf.GradientTape() as tape:
        student = JointInputs(*map(tf.constant, batch.student[:2]), *variables)
        total = tf.add_n(joint_tile_losses(student, batch.teacher, *batch[2:], frames_per_tile=2))
    assert_same(tape.gradient(total, variables), list(value_and_gradient(batch, 1.0)[2][2:]))


def test_a_wrong_kl_or_delay_is_refused_by_name():
    batch = joint_batch(15)
    with pytest.raises(ValueError, match="kl='full'"):
        joint_tile_losses(*batch, kl="full")
    with pytest.raises(ValueError, match="teacher_delay=-1"):
        joint_tile_losses(*batch, teacher_delay=-1)


def step(student, teacher, labels, num_frames, num_labels, **options):
    with tf.GradientTape() as tape:
        tape.watch(student)
        losses = joint_tile_losses(student, teacher, labels, num_frames, num_labels, **options)
        total = tf.add_n(losses)
    return losses, tape.gradient(total, student)


def unknown_shapes(width, vocabulary):
    def inputs(width):
        batched = tf.TensorSpec([None, None, width])
        return JointInputs(batched, batched, tf.TensorSpec([width, vocabulary]), tf.TensorSpec([vocabulary]))

    integers = tf.TensorSpec([None], tf.int32)
    return [inputs(width), inputs(width + 1), tf.TensorSpec([None, None], tf.int32), integers, integers]


@pytest.mark.parametrize(
    ("signature", "compiled", "frames_per_tile"),
    [
        pytest.param(None, False, None, id="graph, one tile", marks=pytest.mark.slow),
        pytest.param(None, True, 3, id="XLA", marks=pytest.mark.slow),
        pytest.param(unknown_shapes(5, 6), False, 3, id="graph, unknown shapes"),
        pytest.param(unknown_shapes(5, 6), False, None, id="graph, unknown shapes, one tile", marks=pytest.mark.slow),
        pytest.param(unknown_shapes(5, 6), True, 3, id="XLA, unknown shapes"),
        pytest.param(unknown_shapes(5, 6), True, None, id="XLA, unknown shapes, one tile", marks=pytest.mark.slow),
    ],
)
def test_eager_graph_and_xla_agree(signature, compiled, frames_per_tile):
    batch = joint_batch(16)
    arguments = constants(batch.student), constants(batch.teacher), *map(tf.constant, batch[2:])

    def tiled(*arguments):
        return step(*arguments, frames_per_tile=frames_per_tile)

    found = tf.function(tiled, input_signature=signature, jit_compile=compiled)(*arguments)
    assert_same(found, tiled(*arguments))


def test_tiles_are_cut_by_memory_when_the_caller_names_none(monkeypatch):
    batch = clean(joint_batch(17))
    whole = value_and_gradient(batch)
    sizes = []
    visit = joint_tiles._visit
    monkeypatch.setattr(joint_tiles, "TILE_FLOATS", 1 << 11)
    monkeypatch.setattr(joint_tiles, "_visit", lambda task, tile: sizes.append(len(tile.frames)) or visit(task, tile))
    assert_same(value_and_gradient(batch), whole)
    assert sizes == [0, 4, 4]  # nothing is kept; then 1 + 2048 / (3 * 5 + 5 * 6) / (3 * 5) frames at a time


def largest_tensor(function, *arguments):
    """Elements of the largest tensor anywhere in a function's graph, loop bodies included."""
    graph = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def(add_shapes=True)
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    shapes = [shape for node in nodes for shape in node.attr["_output_shapes"].list.shape if not shape.unknown_rank]
    return max(math.prod(dim.size for dim in shape.dim) for shape in shapes if all(dim.size >= 0 for dim in shape.dim))


def test_no_tensor_is_as_large_as_all_logits():
    batch = joint_batch(18, frames=12, vocabulary=40)
    arguments = constants(batch.student), constants(batch.teacher), *map(tf.constant, batch[2:])
    all_logits = 3 * 12 * 5 * 40
    assert largest_tensor(lambda *a: step(*a, frames_per_tile=12), *arguments) >= all_logits
    assert largest_tensor(lambda *a: step(*a, frames_per_tile=2), *arguments) == all_logits // 6


@pytest.mark.slow
def test_uniform_closed_form_on_a_lattice_whose_logits_would_not_fit():
    frames, labels, vocabulary, width = 1000, 300, 4096, 8
    student = JointInputs(
        tf.zeros([1, frames, width]),
        tf.zeros([1, labels + 1, width]),
        tf.zeros([width, vocabulary]),
        tf.zeros([vocabulary]),
    )
    loss, kl = tf.function(joint_tile_losses)(
        student, None, tf.ones([1, labels], tf.int32), tf.constant([frames]), tf.constant([labels])
    )
    paths = math.lgamma(frames + labels) - math.lgamma(labels + 1) - math.lgamma(frames)
    assert float(loss[0]) == pytest.approx((frames + labels) * math.log(vocabulary) - paths, rel=1e-4)
    assert float(kl[0]) == 0.0
