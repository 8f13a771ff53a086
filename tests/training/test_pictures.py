"""What is drawn of a lattice, against the losses' own functions, and that nothing can keep it from being drawn."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tf_rnnt_kd.losses import JointInputs, best_alignment, joint_losses, lattice_kl
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.objective import Objective, find_teacher_joint
from tf_rnnt_kd.training.pictures import Alignments, Pictures, View, draw_alignment, draw_lattice, make_batch

PIECES = ["", " ", "A", "B", "C", "D"]


@pytest.fixture(scope="module")
def student():
    return tiny.transducer(dropout=0.0, seed=3)


def look(model, objective, records, record):
    joint = find_teacher_joint([records], model) if objective.needs_teacher else None
    pictures = Pictures(model, objective, joint, [record], PIECES)
    views = pictures._views(make_batch(record))
    return [tf.nest.map_structure(lambda v: None if v is None else v.numpy(), view) for view in views]


def logits(model, record):
    batch = make_batch(record)
    encoded, num_frames, predicted = model(batch.features, batch.num_features, batch.labels)
    return model.join(encoded[:, :, None], predicted[:, None]), batch, num_frames


@pytest.mark.parametrize("codec", ["factored", "lattice"])
def test_a_view_holds_what_the_losses_say(student, toy_teacher, toy_targets, codec):
    records = toy_targets[codec]
    record = next(r for r in records.read() if len(r.labels) > 2)
    (view,) = look(student, Objective(kl_weight=0.1), records, record)
    ours, batch, num_frames = logits(student, record)
    theirs, _, _ = logits(toy_teacher, record)
    lengths = num_frames, batch.num_labels
    tolerance = 1e-4 if codec == "factored" else 2e-2  # stored in float16
    for alignments, values in ((view.student, ours), (view.teacher, theirs)):
        np.testing.assert_array_equal(alignments.frames, best_alignment(values, batch.labels, *lengths)[0][0])
        length, columns = values.shape[1:3]
        assert alignments.posterior.shape == (length, columns) and np.ptp(alignments.posterior) > 0.5
        for diagonal in range(length + columns - 1):  # every alignment visits one node of each
            nodes = [(t, diagonal - t) for t in range(length) if 0 <= diagonal - t < columns]
            assert sum(alignments.posterior[node] for node in nodes) == pytest.approx(1.0, abs=1e-3)
    assert view.delay == 0 and np.all(view.kl >= -1e-5)
    np.testing.assert_allclose(view.kl.sum(), lattice_kl(theirs, ours, *lengths)[0], rtol=tolerance)


@pytest.mark.parametrize(
    "change",
    [{"kl": "collapsed"}, {"temperature": 2.0}, {"teacher_delay": 3}, {"teacher_delay": (0, 2)}],
)
def test_nodes_are_compared_as_the_objective_compares_them(student, toy_targets, change):
    records = toy_targets["factored"]
    record = next(r for r in records.read() if len(r.labels) > 2)
    (view,) = look(student, Objective(kl_weight=0.1, **change), records, record)
    batch = make_batch(record)
    encoded, num_frames, predicted = student(batch.features, batch.num_features, batch.labels)
    inputs = JointInputs(encoded, predicted, student.joint_kernel, student.joint_bias)
    teacher = JointInputs(batch.teacher.encoded, batch.teacher.predicted, records.kernel, records.bias)
    lengths = batch.labels, num_frames, batch.num_labels
    expected = joint_losses(inputs, teacher, *lengths, **change).kl[0]
    np.testing.assert_allclose(np.nansum(view.kl), expected, rtol=1e-4)
    assert np.isnan(view.kl[:, 0]).sum() == view.delay == (3 if change.get("teacher_delay") == 3 else view.delay)


@pytest.mark.parametrize("kl", ["sequence", "best_path", "student_occupancy"])
def test_every_distance_has_a_picture(student, toy_targets, kl):
    record = next(toy_targets["factored"].read())
    (view,) = look(student, Objective(kl_weight=0.1, kl=kl), toy_targets["factored"], record)
    assert np.all(np.isfinite(view.kl))


def test_without_a_teacher_there_is_the_student_alone(student, toy_records):
    record = next(toy_records.read())
    pictures = Pictures(student, Objective(), None, [record], PIECES)
    drawn = dict(pictures.draw(7))
    assert list(drawn) == [f"lattice/{record.id}", f"alignment/{record.id}"]
    with_teacher = View(*look(student, Objective(), toy_records, record)[0])
    assert with_teacher.teacher is None and with_teacher.kl is None
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in drawn.values())


def test_both_passes_of_a_cascade_are_drawn_and_the_second_teaches_the_first(toy_targets):
    model = tiny.transducer(causal=True, second_pass_blocks=1, dropout=0.0)
    record = next(toy_targets["factored"].read())
    objective = CascadedObjective(Objective(kl_weight=0.1), Objective())
    first, second = look(model, objective, toy_targets["factored"], record)
    assert second.teacher is None
    np.testing.assert_allclose(first.teacher.posterior, second.student.posterior, atol=1e-6)
    names = [name for name, _ in Pictures(model, objective, None, [record], PIECES).draw(1)]
    assert names == [
        f"{kind}/{which}{record.id}" for which in ("", "second_pass_") for kind in ("lattice", "alignment")
    ]


def test_pictures_leave_weights_and_random_states_as_they_are(toy_records):
    model = tiny.transducer(dropout=0.5)
    before = [v.numpy() for v in model.variables]
    state = np.random.get_state()[1].copy()
    first, again = (
        [image for _, image in Pictures(model, Objective(), None, list(toy_records.read(0, 2)), PIECES).draw(1)]
        for _ in range(2)
    )
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("num_samples", "labels", "drawn"),
    [(100, [], False), (1_000, [], True), (1_000, [2], True), (8_000, [], True), (1_000, [2, 3, 4], True)],
)
def test_any_utterance_is_drawn_that_has_a_frame(student, toy_records, num_samples, labels, drawn):
    """Shorter than a frame, of one frame, without labels, with fewer frames than labels."""
    record = dataclasses.replace(
        next(toy_records.read()), samples=np.zeros([num_samples], np.int16), labels=np.array(labels, np.int32)
    )
    found = dict(Pictures(student, Objective(), None, [record], PIECES).draw(1))
    assert len(found) == 2 * drawn and all(image.shape[1] > 700 for image in found.values())


def test_an_unknown_label_is_drawn_by_its_number(student, toy_records):
    record = next(toy_records.read())
    assert [Pictures(student, Objective(), None, [record], PIECES[:3])._token(i) for i in (1, 2, 5)] == ["_", "A", "#5"]


def test_a_model_that_is_lost_to_nan_is_drawn(toy_records):
    model = tiny.transducer()
    model.joint.bias.assign(np.full([6], np.nan, np.float32))
    drawn = dict(Pictures(model, Objective(), None, [next(toy_records.read())], PIECES).draw(1))
    (lattice, alignment) = drawn.values()
    dark, path = ((68, 1, 84), (235, 40, 70))
    assert np.all(lattice == dark, axis=-1).mean() > 0.5 and not np.any(np.all(lattice == path, axis=-1))
    assert alignment.shape[1] > 700


def test_large_lattices_are_drawn_at_a_size_that_can_be_seen():
    alignments = Alignments(np.zeros([1000, 301], np.float32), np.arange(300, dtype=np.int32) * 3)
    view = View(
        alignments, alignments, np.ones([1000, 301], np.float32), np.int32(4), np.zeros([0]), np.zeros([0], int)
    )
    image = draw_lattice("long", view, ["token"] * 300)
    assert image.shape[0] < 1500 and image.shape[1] < 1500
    features = np.zeros([4000, 80], np.float32)
    assert draw_alignment("long", features, view, ["token"] * 300, []).shape[1] < 1700
