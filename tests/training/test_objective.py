import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tests.oracles import alignments
from tf_rnnt_kd.batch import Batch, TeacherTargets
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.pipeline import Augmentation, read_batches
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.losses import JointInputs, joint_tile_losses
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.objective import Band, Objective, TeacherJoint

V, D, T, U = 6, 12, 10, 4


@pytest.fixture(scope="module")
def student():
    return tiny.transducer(V, dropout=0.0, seed=3)


@pytest.fixture(scope="module")
def teacher_joint():
    rng = np.random.default_rng(1)
    return TeacherJoint(random(rng, 7, V), random(rng, V))


def random(rng, *shape):
    return tf.constant(rng.standard_normal(shape), tf.float32)


def make_batch(seed=0, weight=(1.0, 0.0, 1.0)):
    """Three utterances: of T, 7 and 9 frames, of 4, 2 and 1 labels; the second has no teacher."""
    rng = np.random.default_rng(seed)
    labels = np.array([[1, 2, 3, 4], [5, 1, 0, 0], [3, 0, 0, 0]], np.int32)
    teacher = TeacherTargets(
        random(rng, 3, T, 7), random(rng, 3, U + 1, 7), random(rng, 3, T, U + 1, V), tf.constant(weight)
    )
    num_features, num_labels = tf.constant([4 * T, 30, 37]), tf.constant([4, 2, 1])
    return Batch(random(rng, 3, 4 * T, 80), num_features, labels, num_labels, teacher, tf.constant([1, 0, 1]))


def numbers(sums):
    return {name: float(value) for name, value in sums.items()}


def gradient(objective, model, batch, joint):
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        sums = objective(model, batch, joint)
    zero = tf.UnconnectedGradients.ZERO
    return numbers(sums), [g.numpy() for g in tape.gradient(sums["total"], variables, unconnected_gradients=zero)]


def assert_close_gradients(ours, theirs, tolerance):
    """Relative to the largest entry of each tensor."""
    assert any(np.any(g) for g in ours)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=tolerance * max(np.abs(b).max(), 1e-3))


def test_hard_targets_have_no_kl_and_soft_targets_add_it(student, teacher_joint):
    batch = make_batch()
    hard = numbers(Objective()(student, batch, None))
    soft = numbers(Objective(kl_weight=0.01)(student, batch, teacher_joint))
    assert hard["kl"] == 0.0 and soft["kl"] > 0.0
    for name in ("transducer", "ctc", "labels"):
        assert hard[name] == pytest.approx(soft[name], rel=1e-6)
    assert hard["total"] == pytest.approx(hard["transducer"] + 0.3 * hard["ctc"], rel=1e-6)
    assert soft["total"] == pytest.approx(hard["total"] + 0.01 * soft["kl"], rel=1e-6)
    assert (soft["labels"], soft["kl_labels"], hard["kl_labels"]) == (7.0, 5.0, 0.0)


def test_hard_targets_need_no_teacher_at_all(student):
    assert not Objective().needs_teacher and Objective(kl_weight=1e-3).needs_teacher
    sums = numbers(Objective()(student, make_batch()._replace(teacher=None), None))
    assert sums == numbers(Objective()(student, make_batch(), None))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 2.0, 0.25)])
def test_each_loss_has_its_weight(student, teacher_joint, weights):
    objective = Objective(transducer_weight=weights[0], ctc_weight=weights[1], kl_weight=weights[2])
    sums = numbers(objective(student, make_batch(), teacher_joint))
    expected = sum(w * sums[name] for w, name in zip(weights, ("transducer", "ctc", "kl"), strict=True))
    assert sums["total"] == pytest.approx(expected, rel=1e-6)
    assert (sums["ctc"] == 0.0) == (weights[1] == 0.0)


@pytest.mark.parametrize("delay", [0, (0, 1, 2, 3)])
@pytest.mark.parametrize("codec", ["factored", "lattice"])
def test_rows_without_teacher_have_no_kl_whatever_their_targets_hold(student, teacher_joint, codec, delay):
    batch, joint = make_batch(), teacher_joint if codec == "factored" else None
    objective = Objective(kl_weight=0.5, teacher_delay=delay)
    expected, clean = gradient(objective, student, batch, joint)
    rubbish = [np.array(value) for value in batch.teacher]
    for value in rubbish[:3]:
        value[1] = 20.0 * np.random.default_rng(9).standard_normal(value[1].shape)
    found, dirty = gradient(objective, student, batch._replace(teacher=TeacherTargets(*rubbish)), joint)
    assert found == pytest.approx(expected, rel=1e-6)
    assert_close_gradients(dirty, clean, 1e-6)
    alone = numbers(objective(student, make_batch(weight=(0.0, 0.0, 0.0)), joint))
    assert alone["kl"] == alone["kl_labels"] == 0.0


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 2.0},
        {"teacher_delay": 2},
        {"teacher_delay": (0, 3)},
        {"kl": "collapsed"},
        {"kl_mean": True},
        {"product_dtype": "bfloat16"},
        {"fastemit_lambda": 0.5},
    ],
    ids=str,
)
def test_settings_reach_the_losses(student, teacher_joint, setting):
    batch = make_batch(weight=(1.0, 1.0, 1.0))
    encoded, num_frames, predicted = student(batch.features, batch.num_features, batch.labels)
    inputs = JointInputs(encoded, predicted, student.joint_kernel, student.joint_bias)
    teacher = JointInputs(batch.teacher.encoded, batch.teacher.predicted, *teacher_joint)
    expected = joint_tile_losses(inputs, teacher, batch.labels, num_frames, batch.num_labels, **setting)
    sums = numbers(Objective(kl_weight=0.1, **setting)(student, batch, teacher_joint))
    assert sums["transducer"] == pytest.approx(float(tf.reduce_sum(expected[0])), rel=1e-5)
    assert sums["kl"] == pytest.approx(float(tf.reduce_sum(expected[1])), rel=1e-5)


READINGS = ["collapsed", "teacher_occupancy", "student_occupancy", "best_path", "band", "sequence", "full_sum"]


@pytest.mark.parametrize("kl", READINGS)
def test_every_reading_of_the_teacher_trains(student, teacher_joint, kl):
    sums, grads = gradient(Objective(kl_weight=1.0, transducer_weight=0.0, kl=kl), student, make_batch(), teacher_joint)
    assert sums["kl"] > 0.0 and all(np.all(np.isfinite(g)) for g in grads) and any(np.any(g) for g in grads)


def occupancy_sum(batch, row, delay):
    """How often the teacher's alignments visit the nodes that a student late by `delay` is compared with."""
    frames, count = int(batch.num_features[row]) // 4, int(batch.num_labels[row])
    logits = batch.teacher.logits.numpy()[row, :frames, : count + 1].astype(np.float64)
    log_probs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    label = np.stack([log_probs[:, u, batch.labels[row, u]] for u in range(count)], axis=1)
    return alignments.occupancies(log_probs[:, :, 0], label)[: max(frames - delay, 0)].sum()


@pytest.mark.parametrize(
    ("setting", "nodes"),
    [
        # Of the two that are taught, T = 10 and U = 4, T = 9 and U = 1.
        ({}, 10 * 5 + 9 * 2),
        ({"teacher_delay": 2}, 8 * 5 + 7 * 2),
        ({"teacher_delay": 9}, 5),
        ({"teacher_delay": 50}, 0),
        ({"kl": "collapsed", "teacher_delay": 1}, 9 * 5 + 8 * 2),
        ({"kl": "best_path"}, (10 + 4) + (9 + 1)),
        ({"kl": "teacher_occupancy"}, (10 + 4) + (9 + 1)),  # every alignment visits so many
        ({"kl": "student_occupancy"}, (10 + 4) + (9 + 1)),
        ({"kl": "teacher_occupancy", "teacher_delay": 4}, None),
        ({"kl_mean": True, "kl": "teacher_occupancy"}, 2),
        ({"kl_mean": True, "teacher_delay": 9}, 1),
    ],
    ids=str,
)
def test_nodes_count_by_their_weight(student, setting, nodes):
    batch = make_batch()
    if nodes is None:
        nodes = sum(occupancy_sum(batch, row, setting["teacher_delay"]) for row in (0, 2))
    sums = numbers(Objective(kl_weight=0.1, **setting)(student, batch, None))
    assert sums["kl_nodes"] == pytest.approx(nodes, rel=1e-5)


def test_entropy_is_a_term_with_a_weight(student):
    sums = numbers(Objective(entropy_weight=0.5)(student, make_batch(), None))
    plain = numbers(Objective()(student, make_batch(), None))
    assert sums["entropy"] > 0.0 and "entropy" not in plain
    assert sums["total"] == pytest.approx(plain["total"] + 0.5 * sums["entropy"], rel=1e-6)


@pytest.fixture(scope="module")
def banded_student():
    return tiny.transducer(V, dropout=0.0, seed=3, has_additive_joint=True)


def test_a_band_over_all_columns_is_the_whole_lattice_and_trains_the_additive_joint(banded_student, teacher_joint):
    batch = make_batch()
    whole, expected = gradient(Objective(kl_weight=0.1), banded_student, batch, teacher_joint)
    objective = Objective(kl_weight=0.1, band=Band(columns=U + 1, additive_weight=0.7))
    banded, found = gradient(objective, banded_student, batch, teacher_joint)
    for name in ("transducer", "kl", "ctc"):
        assert banded[name] == pytest.approx(whole[name], rel=1e-5)
    assert banded["total"] == pytest.approx(whole["total"] + 0.7 * banded["additive"], rel=1e-6)
    heads = [v.path.split("/")[-2] in ("acoustic_head", "linguistic_head") for v in banded_student.trainable_variables]
    assert sum(heads) == 4
    for head, ours, theirs in zip(heads, found, expected, strict=True):
        assert not head or (np.any(ours) and not np.any(theirs))


def test_a_narrow_band_is_cheaper_than_the_lattice_and_still_finite(banded_student, teacher_joint):
    objective = Objective(kl_weight=0.1, band=Band(columns=2))
    sums, grads = gradient(objective, banded_student, make_batch(), teacher_joint)
    whole = numbers(Objective(kl_weight=0.1)(banded_student, make_batch(), teacher_joint))
    assert whole["transducer"] < sums["transducer"] < np.inf and 0.0 < sums["kl"] < whole["kl"]
    assert (whole["kl_nodes"], sums["kl_nodes"]) == (10 * 5 + 9 * 2, 10 * 2 + 9 * 2)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_what_a_band_cannot_do_is_refused_by_name(student, banded_student, teacher_joint):
    with pytest.raises(UserError, match="has_additive_joint"):
        Objective(band=Band())(student, make_batch(), None)
    with pytest.raises(UserError, match="codec = 'factored'"):
        Objective(kl_weight=1.0, band=Band())(banded_student, make_batch(), None)
    with pytest.raises(UserError, match="entropy_weight"):
        Objective(band=Band(), entropy_weight=0.1)


def test_what_is_decided_over_the_whole_batch_has_a_name():
    delays, scaled = Objective(kl_weight=1.0, teacher_delay=(0, 2)), Objective(band=Band(acoustic_scale=0.1))
    assert delays.whole_batch == ("Objective.teacher_delay of several values",)
    assert scaled.whole_batch == ("Band.acoustic_scale",)
    assert CascadedObjective(first_pass=delays, second_pass=scaled).whole_batch == (
        delays.whole_batch + scaled.whole_batch
    )
    for objective in (Objective(kl_weight=1.0, teacher_delay=(2,)), Objective(teacher_delay=(0, 2)), Objective()):
        assert objective.whole_batch == ()


@pytest.mark.parametrize("setting", [{"temperature": 2.0}, {"teacher_delay": 2}, {"kl": "collapsed"}], ids=str)
def test_no_setting_of_the_kl_is_dead(student, teacher_joint, setting):
    plain = numbers(Objective(kl_weight=0.1)(student, make_batch(), teacher_joint))
    changed = numbers(Objective(kl_weight=0.1, **setting)(student, make_batch(), teacher_joint))
    assert changed["kl"] != pytest.approx(plain["kl"], rel=1e-3) and changed["transducer"] == plain["transducer"]


def test_fastemit_changes_the_gradient_and_not_the_value(student):
    plain, slow = gradient(Objective(), student, make_batch(), None)
    fast, quick = gradient(Objective(fastemit_lambda=0.5), student, make_batch(), None)
    assert fast == plain
    assert max(np.abs(a - b).max() for a, b in zip(slow, quick, strict=True)) > 1e-3


def test_rows_that_ctc_cannot_align_are_finite_and_leave_the_others_alone(student):
    batch = make_batch()
    labels = np.array([[1, 2, 3, 4], [5, 5, 5, 5], [3, 0, 0, 0]], np.int32)
    # Seven frames hold four equal labels with three blanks; six do not.
    possible = batch._replace(labels=labels, num_labels=tf.constant([4, 4, 1]), num_features=tf.constant([40, 28, 37]))
    impossible = possible._replace(num_features=tf.constant([40, 24, 37]))
    with_row, without_row = (gradient(Objective(), student, b, None) for b in (possible, impossible))
    for sums, gradients in (with_row, without_row):
        assert all(np.isfinite(value) for value in sums.values())
        assert all(np.all(np.isfinite(g)) for g in gradients)
    only = [0, 2]
    others = batch._replace(
        **{
            name: tf.gather(getattr(impossible, name), only)
            for name in ("features", "num_features", "labels", "num_labels")
        }
    )
    assert without_row[0]["ctc"] == pytest.approx(numbers(Objective()(student, others, None))["ctc"], rel=1e-5)
    assert with_row[0]["ctc"] > without_row[0]["ctc"]


def test_padding_changes_neither_values_nor_gradients(student, teacher_joint):
    batch, objective = make_batch(), Objective(kl_weight=0.1)
    features, labels = batch.features.numpy(), batch.labels.copy()
    features[1, 30:], labels[1, 2:], labels[2, 1:] = np.nan, 4, 2
    teacher = [np.array(value) for value in batch.teacher]
    teacher[0][1, 7:] = teacher[0][2, 9:] = teacher[1][2, 2:] = np.nan
    dirty = batch._replace(features=features, labels=labels, teacher=TeacherTargets(*teacher))
    expected, clean_gradients = gradient(objective, student, batch, teacher_joint)
    found, dirty_gradients = gradient(objective, student, dirty, teacher_joint)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_close_gradients(dirty_gradients, clean_gradients, 1e-5)


# -- from stored targets, through the pipeline --


@pytest.fixture(scope="module")
def batches(toy_records, toy_targets):
    """By codec: batches as a student gets them, and with the teacher's clean input."""

    def read(codec, augmentation):
        sets = [toy_records, toy_targets[codec]]
        schedule = make_schedule([sets[0]], sets[1:], tiny.BUCKETS, num_steps=2, labelled_fraction=0.3, seed=5)
        return list(read_batches(sets, schedule, first_step=0, augmentation=augmentation, seed=5, with_teacher=True))

    clean = Augmentation(num_frequency_masks=0, num_time_masks=0)
    return {c: list(zip(read(c, Augmentation()), read(c, clean), strict=True)) for c in ("factored", "lattice")}


def live_kl(teacher, student, batch, clean):
    """KL of the rows with a teacher, and its gradient by the student's weights, with the teacher at work."""
    encoded, _ = teacher.encode(clean.features, clean.num_features)
    live = JointInputs(encoded, teacher.predict_labels(clean.labels), teacher.joint_kernel, teacher.joint_bias)
    variables = [v.value for v in student.trainable_variables]
    with tf.GradientTape() as tape:
        encoded, num_frames, predicted = student(batch.features, batch.num_features, batch.labels)
        inputs = JointInputs(encoded, predicted, student.joint_kernel, student.joint_bias)
        _, kl = joint_tile_losses(inputs, live, batch.labels, num_frames, batch.num_labels)
        kl = tf.reduce_sum(kl * tf.cast(batch.source, tf.float32))
    zero = tf.UnconnectedGradients.ZERO
    return float(kl), [g.numpy() for g in tape.gradient(kl, variables, unconnected_gradients=zero)]


@pytest.mark.parametrize(("codec", "tolerance"), [("factored", 1e-5), ("lattice", 2e-3)])
def test_stored_targets_give_the_kl_and_the_gradient_of_a_live_teacher(
    student, toy_teacher, toy_targets, batches, codec, tolerance
):
    records = toy_targets[codec]
    joint = TeacherJoint(records.kernel, records.bias) if codec == "factored" else None
    objective = Objective(transducer_weight=0.0, ctc_weight=0.0, kl_weight=1.0)
    seen = set()
    for batch, clean in batches[codec]:
        assert np.any(batch.features.numpy() != clean.features.numpy())  # the student is masked, the teacher was not
        sums, stored = gradient(objective, student, batch, joint)
        expected, live = live_kl(toy_teacher, student, batch, clean)
        assert sums["kl"] == pytest.approx(expected, rel=tolerance) and expected > 1.0
        assert_close_gradients(stored, live, tolerance)
        seen.update(batch.source.numpy().tolist())
    assert seen == {0, 1}


def test_the_teacher_itself_has_no_kl_on_its_own_targets(toy_teacher, toy_targets, batches):
    records = toy_targets["factored"]
    objective = dataclasses.replace(Objective(kl_weight=1.0), ctc_weight=0.0)
    for _, clean in batches["factored"]:
        encoded, num_frames, predicted = toy_teacher(clean.features, clean.num_features, clean.labels)
        inputs = JointInputs(encoded, predicted, toy_teacher.joint_kernel, toy_teacher.joint_bias)
        stored = objective.read_lesson(clean, TeacherJoint(records.kernel, records.bias)).teacher
        _, kl = joint_tile_losses(inputs, stored, clean.labels, num_frames, clean.num_labels)
        np.testing.assert_allclose(kl * clean.teacher.weight, 0.0, atol=1e-4)
