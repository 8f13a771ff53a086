import math

import numpy as np
import pytest
import tensorflow as tf

from tests.losses.batches import joint_batch
from tests.losses.joints import (
    assert_same,
    clean,
    constants,
    large_batch,
    logits,
    step,
    unknown_shapes,
    value_and_gradient,
)
from tests.oracles import alignments, divergence, joint
from tf_rnnt_kd.losses import (
    JointInputs,
    collapsed_lattice_kl,
    joint_passes,
    joint_tile_losses,
    joint_tiles,
    lattice_kl,
    transducer_loss,
)


def stored(student, teacher, labels, num_frames, num_labels, *, kl="lattice", temperature=1.0, **options):
    """The wide functions, on logits that exist as a whole."""
    student, teacher = logits(student), logits(constants(teacher))
    transducer = transducer_loss(student, labels, num_frames, num_labels, **options)
    if kl == "collapsed":
        divergences = collapsed_lattice_kl(teacher, student, labels, num_frames, num_labels, temperature=temperature)
    else:
        divergences = lattice_kl(teacher, student, num_frames, num_labels, temperature=temperature)
    return transducer, divergences


def assert_equal(found, wanted):
    for values, expected in zip(tf.nest.flatten(found), tf.nest.flatten(wanted), strict=True):
        np.testing.assert_array_equal(values, expected)


OPTIONS = [
    {},
    {"fastemit_lambda": 0.2},
    {"temperature": 2.0},
    {"kl": "collapsed"},
    {"kl": "collapsed", "temperature": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [joint_batch, large_batch])
def test_tiles_equal_the_losses_on_stored_logits(make, options):
    batch = clean(make(0))
    found = value_and_gradient(batch, frames_per_tile=8, **options)
    assert_same(found, value_and_gradient(batch, losses=stored, **options), atol=1e-4)


@pytest.mark.parametrize("make", [joint_batch, large_batch])
def test_the_size_of_the_tiles_changes_nothing(make):
    batch = make(0)
    whole = value_and_gradient(batch)
    for frames_per_tile in (1, 7, 8, 15, 37, 100):
        assert_same(value_and_gradient(batch, frames_per_tile=frames_per_tile), whole, atol=1e-4)


@pytest.mark.parametrize(("frames", "labels"), [(15, 3), (16, 7), (17, 8), (32, 15), (33, 4)])
def test_lattices_at_the_edges_of_blocks(frames, labels):
    lengths = (frames, max(frames - 16, 1)), (labels, max(labels - 8, 0))
    batch = clean(joint_batch(1, frames=frames, labels=labels, lengths=lengths))
    assert_same(value_and_gradient(batch, frames_per_tile=8), value_and_gradient(batch, losses=stored), atol=1e-4)


@pytest.mark.parametrize("blank_id", [0, 3, 5])
def test_values_equal_the_sum_over_alignments_and_nodes(blank_id):
    batch = large_batch(1, blank_id=blank_id)
    transducer, kl, _ = value_and_gradient(batch, frames_per_tile=8, blank_id=blank_id)
    for b in range(3):
        student, teacher = (joint.logits(*batch.utterance(inputs, b)) for inputs in batch[:2])
        arcs = alignments.arcs_of(student, batch.labels_of(b), blank_id)
        assert float(transducer[b]) == pytest.approx(-alignments.log_likelihood_by_loops(*arcs), rel=1e-5)
        assert float(kl[b]) == pytest.approx(divergence.lattice_kl(teacher, student), rel=1e-5)


def test_padding_of_the_nodes_is_zero():
    batch = large_batch(2)
    nodes = joint_passes.joint_nodes(constants(batch.student), batch.teacher, *batch[2:], frames_per_tile=8)
    mask = np.zeros((3, 37, 12), bool)
    for b in range(3):
        mask[b, : batch.num_frames[b], : batch.num_labels[b] + 1] = True
    for values in (nodes.log_blank, nodes.divergence):
        np.testing.assert_array_equal(values.numpy() != 0, mask)
    assert not np.any(nodes.log_label.numpy()[~mask[:, :, :-1]])


def node_gradient(batch, weights, **options):
    """Of the sum of all nodes' values, each times its weight [B, T, U+1]."""
    student = constants(batch.student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        nodes = joint_passes.joint_nodes(student, batch.teacher, *map(tf.constant, batch[2:]), **options)
        total = tf.reduce_sum(weights * (nodes.log_blank + nodes.divergence))
        total += tf.reduce_sum(weights[:, :, :-1] * nodes.log_label)
    return tape.gradient(total, student)


def test_each_node_has_its_own_gradient():
    batch = clean(large_batch(3))
    random = np.random.default_rng(0)
    weights = tf.constant(random.normal(size=(3, 37, 12)), tf.float32)
    student = constants(batch.student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        z = logits(student)
        log_probs = tf.nn.log_softmax(z)
        gap = tf.nn.log_softmax(logits(constants(batch.teacher))) - log_probs
        kl = tf.reduce_sum(tf.nn.softmax(logits(constants(batch.teacher))) * gap, axis=3)
        index = tf.constant(np.tile(np.maximum(batch.labels, 0)[:, None], (1, 37, 1)))
        label = tf.gather(log_probs[:, :, :-1], index, batch_dims=3)
        mask = np.zeros((3, 37, 12), np.float32)
        has_label = np.zeros((3, 37, 11), np.float32)
        for b in range(3):
            mask[b, : batch.num_frames[b], : batch.num_labels[b] + 1] = 1
            has_label[b, : batch.num_frames[b], : batch.num_labels[b]] = 1
        total = tf.reduce_sum(mask * weights * (log_probs[..., 0] + kl))
        total += tf.reduce_sum(has_label * weights[:, :, :-1] * label)
    wanted = tape.gradient(total, student)
    assert_same(node_gradient(batch, weights, frames_per_tile=8), wanted, atol=1e-4)


def recorded_tiles(monkeypatch):
    """The number of blocks of each tile that is made from now on."""
    sizes = []
    make = joint_tiles.make_tile

    def recording(task, student, blocks):
        sizes.append(len(blocks))
        return make(task, student, blocks)

    monkeypatch.setattr(joint_tiles, "make_tile", recording)
    return sizes


def test_tiles_are_cut_by_memory_and_the_first_is_kept(monkeypatch):
    batch = clean(large_batch(4))
    whole = value_and_gradient(batch)
    sizes = recorded_tiles(monkeypatch)
    monkeypatch.setattr(joint_tiles, "TILE_FLOATS", 300 * (3 * 5 + 5 * 6))
    assert_same(value_and_gradient(batch), whole, atol=1e-4)
    # 300 nodes are 4 blocks; 12 blocks are no padding; for the gradient the 8 that are not in the first tile.
    assert sizes == [4, 4, 4, 4, 4]


def test_one_tile_is_made_once(monkeypatch):
    sizes = recorded_tiles(monkeypatch)
    value_and_gradient(clean(large_batch(4)))
    assert sizes == [27]


def test_padding_is_never_made(monkeypatch):
    batch = large_batch(5)
    batch = batch._replace(num_frames=np.array([5, 3, 0], np.int32), num_labels=np.array([3, 2, 0], np.int32))
    sizes = recorded_tiles(monkeypatch)
    value_and_gradient(batch, frames_per_tile=1)
    assert len(sizes) == 2 + 1  # two blocks, one of them kept for the gradient


@pytest.mark.parametrize("elsewhere", [0.0, 2.0**-60])
def test_blocks_whose_gradient_is_negligible_are_not_made_again(monkeypatch, elsewhere):
    batch = large_batch(6)
    weights = np.full((3, 37, 12), elsewhere, np.float32)
    weights[0, 33, 9] = weights[1, 2, 1] = 1.0  # the last block of one utterance, the first of another
    weights[2] = 0.0
    wanted = node_gradient(batch, weights)
    sizes = recorded_tiles(monkeypatch)
    found = node_gradient(batch, weights, frames_per_tile=1)
    assert_same(found, wanted)
    assert len(sizes) == 12 + 2
    touched = np.any(found.encoded.numpy() != 0, axis=2)
    assert np.argwhere(np.abs(found.encoded).max(axis=2) > 1e-6).tolist() == [[0, 33], [1, 2]]
    assert not np.any(touched[2])


def test_an_utterance_of_small_weight_keeps_its_gradient():
    batch = large_batch(7)
    alone = node_gradient(batch, np.array([0.0, 1.0, 0.0], np.float32)[:, None, None] * np.ones((3, 37, 12)))
    small = np.array([1.0, 2.0**-60, 0.0], np.float32)[:, None, None] * np.ones((3, 37, 12))
    found = node_gradient(batch, small.astype(np.float32), frames_per_tile=1)
    np.testing.assert_allclose(found.encoded[1] * 2.0**60, alone.encoded[1], rtol=1e-4, atol=1e-4)


def test_an_utterance_without_weight_costs_no_second_tile(monkeypatch):
    batch = large_batch(8)
    sizes = recorded_tiles(monkeypatch)
    node_gradient(batch, np.array([0.0, 0.0, 1.0], np.float32)[:, None, None] * np.ones((3, 37, 12)), frames_per_tile=1)
    assert len(sizes) == 12 + 1


@pytest.mark.parametrize(
    ("frames_per_tile", "options"),
    [
        (None, {}),
        (8, {}),
        (8, {"kl": "collapsed"}),
        (8, {"teacher_delay": 2, "temperature": 2.0}),
        (8, {"kl": "teacher_occupancy", "teacher_delay": 1}),
        (8, {"kl": "sequence"}),
        (8, {"teacher_delay": (0, 2)}),
    ],
    ids=str,
)
def test_stored_teacher_logits_equal_the_live_teacher(frames_per_tile, options):
    batch = large_batch(4)
    live = value_and_gradient(batch, frames_per_tile=frames_per_tile, **options)
    teacher = logits(constants(batch.teacher))
    assert np.any(np.isnan(teacher))
    exact = value_and_gradient(batch._replace(teacher=teacher), frames_per_tile=frames_per_tile, **options)
    assert_same(exact, live, atol=2e-4)
    half = tf.cast(teacher, tf.float16)
    assert_same(value_and_gradient(batch._replace(teacher=half), **options)[:2], live[:2], rtol=0.01, atol=0.01)


def test_without_teacher_kl_is_zero_and_the_rest_unchanged():
    batch = large_batch(5)
    transducer, kl, gradient = value_and_gradient(batch._replace(teacher=None), frames_per_tile=8)
    wanted, _, wanted_gradient = value_and_gradient(batch, kl_weight=0.0, frames_per_tile=8)
    assert not np.any(kl)
    assert_same([transducer, gradient], [wanted, wanted_gradient])


@pytest.mark.parametrize("frames_per_tile", [None, 8])
@pytest.mark.parametrize("kl", ["lattice", "collapsed"])
def test_kl_is_zero_when_student_is_teacher(kl, frames_per_tile):
    batch = large_batch(6)
    batch = batch._replace(teacher=batch.student)
    _, divergences, gradient = value_and_gradient(batch, 10.0, kl=kl, frames_per_tile=frames_per_tile)
    np.testing.assert_array_equal(divergences, np.zeros(3))
    assert_same(gradient, value_and_gradient(batch, 0.0)[2], atol=1e-4)


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


@pytest.mark.parametrize("frames_per_tile", [None, 8])
@pytest.mark.parametrize("make", [joint_batch, large_batch])
def test_padding_does_not_change_losses_or_gradient(make, frames_per_tile):
    batch = make(8)
    assert np.any(np.isnan(batch.student.encoded)) and np.any(np.isinf(batch.teacher.predicted))
    found = value_and_gradient(batch, frames_per_tile=frames_per_tile)
    assert_equal(found, value_and_gradient(clean(batch), frames_per_tile=frames_per_tile))


@pytest.mark.parametrize("make", [joint_batch, large_batch])
def test_more_padding_does_not_change_losses(make):
    batch = clean(make(9))
    frames, columns = batch.student.encoded.shape[1], batch.student.predicted.shape[1]

    def padded(inputs):
        return inputs._replace(
            encoded=np.pad(inputs.encoded, [(0, 0), (0, 13), (0, 0)], constant_values=np.nan),
            predicted=np.pad(inputs.predicted, [(0, 0), (0, 6), (0, 0)], constant_values=np.nan),
        )

    wider = batch._replace(
        student=padded(batch.student),
        teacher=padded(batch.teacher),
        labels=np.pad(batch.labels, [(0, 0), (0, 6)]),
    )
    transducer, kl, gradient = value_and_gradient(wider, frames_per_tile=4)
    assert not np.any(gradient.encoded[:, frames:]) and not np.any(gradient.predicted[:, columns:])
    found = transducer, kl, gradient.encoded[:, :frames], gradient.predicted[:, :columns], *gradient[2:]
    assert_same(found, value_and_gradient(batch), atol=1e-4)


@pytest.mark.parametrize("frames_per_tile", [None, 8])
def test_a_batch_without_labels(frames_per_tile):
    batch = clean(joint_batch(10, frames=19, labels=0))
    assert_same(value_and_gradient(batch, frames_per_tile=frames_per_tile), value_and_gradient(batch, losses=stored))


def test_an_utterance_of_nothing_among_others_costs_nothing():
    batch = large_batch(10)
    batch = batch._replace(num_frames=np.array([37, 0, 5], np.int32), num_labels=np.array([11, 0, 0], np.int32))
    transducer, kl, gradient = value_and_gradient(batch, frames_per_tile=8)
    assert transducer[1] == kl[1] == 0.0
    assert not np.any(gradient.encoded[1]) and not np.any(gradient.predicted[1])
    for values in tf.nest.flatten([transducer, kl, gradient]):
        assert np.all(np.isfinite(values))


@pytest.mark.parametrize("make", [joint_batch, large_batch])
def test_an_excluded_label_makes_loss_infinite_and_gradient_zero(make):
    batch = make(11)
    batch.student.bias[batch.labels[0, 0]] = -np.inf
    transducer, _, gradient = value_and_gradient(batch._replace(teacher=None), frames_per_tile=8)
    assert transducer[0] == np.inf
    assert not np.any(gradient.encoded[0]) and not np.any(gradient.predicted[0])
    for values in gradient:
        assert np.all(np.isfinite(values))


@pytest.mark.parametrize("kl", ["lattice", "collapsed", "teacher_occupancy", "sequence"])
def test_an_excluded_class_that_nobody_needs_is_harmless(kl):
    batch = large_batch(12, vocabulary=9)
    batch.labels[batch.labels == 8] = 7
    batch.student.bias[8] = batch.teacher.bias[8] = -np.inf
    found = value_and_gradient(batch, kl=kl, frames_per_tile=8)
    for values in tf.nest.flatten(found):
        assert np.all(np.isfinite(values))
    without = JointInputs(*batch.student[:2], batch.student.kernel[:, :8], batch.student.bias[:8])
    teacher = JointInputs(*batch.teacher[:2], batch.teacher.kernel[:, :8], batch.teacher.bias[:8])
    wanted = value_and_gradient(batch._replace(student=without, teacher=teacher), kl=kl, frames_per_tile=8)
    assert_same([*found[:2], *found[2][:2]], [*wanted[:2], *wanted[2][:2]], atol=1e-4)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float64])
def test_any_floating_dtype_gives_float32_and_its_own_gradient_dtype(dtype):
    batch = large_batch(13)
    rounded = JointInputs(*(tf.cast(values, dtype) for values in batch.student))
    transducer, kl, gradient = value_and_gradient(batch._replace(student=rounded))
    again = batch._replace(student=JointInputs(*(tf.cast(values, tf.float32) for values in rounded)))
    assert transducer.dtype == kl.dtype == tf.float32
    assert {values.dtype for values in gradient} == {dtype}
    # The same numbers in float32: only the inputs are rounded, no sum is.
    assert_same([transducer, kl], value_and_gradient(again)[:2])


def test_products_in_bfloat16_stay_within_their_rounding():
    batch = clean(large_batch(14, width=64, vocabulary=80))
    scaled = [inputs._replace(kernel=inputs.kernel / 8.0) for inputs in batch[:2]]
    batch = batch._replace(student=scaled[0], teacher=scaled[1])
    exact, rounded = (value_and_gradient(batch, product_dtype=dtype) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(rounded[0], exact[0], rtol=1e-3)
    np.testing.assert_allclose(rounded[1], exact[1], rtol=1e-2)
    assert np.any(rounded[0] != exact[0])
    for found, wanted in zip(rounded[2], exact[2], strict=True):
        found, wanted = np.ravel(found), np.ravel(wanted)
        assert found @ wanted > 0.9999 * np.linalg.norm(found) * np.linalg.norm(wanted)


def test_the_same_batch_gives_the_same_bits():
    batch = clean(large_batch(15))
    assert_equal(value_and_gradient(batch, frames_per_tile=8), value_and_gradient(batch, frames_per_tile=8))


def test_int64_lengths_and_labels_are_accepted():
    batch = large_batch(13)
    wide = batch._replace(**{name: getattr(batch, name).astype(np.int64) for name in batch._fields[2:]})
    for kl in ("lattice", "collapsed", "best_path", "band"):
        assert_equal(value_and_gradient(wide, kl=kl), value_and_gradient(batch, kl=kl))


def test_weights_may_be_variables():
    batch = joint_batch(14)
    variables = [tf.Variable(values) for values in batch.student[2:]]
    with tf.GradientTape() as tape:
        student = JointInputs(*map(tf.constant, batch.student[:2]), *variables)
        total = tf.add_n(joint_tile_losses(student, batch.teacher, *batch[2:], frames_per_tile=2))
    assert_same(tape.gradient(total, variables), list(value_and_gradient(batch, 1.0)[2][2:]))


@pytest.mark.parametrize(
    ("signature", "compiled", "frames_per_tile"),
    [
        pytest.param(None, False, None, id="graph, one tile", marks=pytest.mark.slow),
        pytest.param(None, True, 8, id="XLA", marks=pytest.mark.slow),
        pytest.param(unknown_shapes(5, 6), False, 8, id="graph, unknown shapes"),
        pytest.param(unknown_shapes(5, 6), False, None, id="graph, unknown shapes, one tile", marks=pytest.mark.slow),
        pytest.param(unknown_shapes(5, 6), True, 8, id="XLA, unknown shapes", marks=pytest.mark.slow),
        pytest.param(unknown_shapes(5, 6), True, None, id="XLA, unknown shapes, one tile", marks=pytest.mark.slow),
    ],
)
def test_eager_graph_and_xla_agree(signature, compiled, frames_per_tile):
    batch = large_batch(16)
    arguments = constants(batch.student), constants(batch.teacher), *map(tf.constant, batch[2:])

    def tiled(*arguments):
        return step(*arguments, frames_per_tile=frames_per_tile)

    found = tf.function(tiled, input_signature=signature, jit_compile=compiled)(*arguments)
    assert_same(found, tiled(*arguments), atol=1e-4)


def largest_tensor(function, *arguments):
    """Elements of the largest tensor anywhere in a function's graph, loop bodies included."""
    graph = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def(add_shapes=True)
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    shapes = [shape for node in nodes for shape in node.attr["_output_shapes"].list.shape if not shape.unknown_rank]
    return max(math.prod(dim.size for dim in shape.dim) for shape in shapes if all(dim.size >= 0 for dim in shape.dim))


def test_no_tensor_is_as_large_as_all_logits():
    batch = joint_batch(18, frames=64, labels=31, vocabulary=40, lengths=((64, 50), (31, 20)))
    arguments = constants(batch.student), constants(batch.teacher), *map(tf.constant, batch[2:])
    all_logits = 2 * 64 * 32 * 40
    assert largest_tensor(lambda *a: step(*a, frames_per_tile=64), *arguments) >= all_logits
    assert largest_tensor(lambda *a: step(*a, frames_per_tile=8), *arguments) == all_logits // 8


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
