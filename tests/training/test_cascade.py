import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tests.oracles import alignments, divergence
from tests.oracles.joint import logits
from tests.training.test_objective import (  # noqa: F401
    V,
    assert_close_gradients,
    gradient,
    make_batch,
    numbers,
    teacher_joint,
)
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.losses import JointInputs, joint_tile_losses
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.objective import Band, Objective

SOFT = Objective(kl_weight=0.1)


@pytest.fixture(scope="module")
def student():
    return tiny.transducer(V, causal=True, dropout=0.0, seed=3, second_pass_blocks=1)


def lattices(model, batch):
    """Both passes as inputs of the joint network."""
    *passes, num_frames = model.encode_twice(batch.features, batch.num_features)
    predicted = model.predict_labels(batch.labels)
    return [JointInputs(e, predicted, model.joint_kernel, model.joint_bias) for e in passes], num_frames


def test_the_losses_are_those_of_each_pass_and_of_their_lattices_node_by_node(student):
    objective, batch = CascadedObjective(first_pass=SOFT), make_batch()
    sums = numbers(objective(student, batch, None))
    (first, second), num_frames = lattices(student, batch)
    expected = dict.fromkeys(("transducer", "second_pass_transducer", "kl"), 0.0)
    for b, (frames, count) in enumerate(zip(num_frames.numpy(), batch.num_labels.numpy(), strict=True)):
        ours, theirs = (
            logits(x.encoded[b, :frames].numpy(), x.predicted[b, : count + 1].numpy(), x.kernel.numpy(), x.bias.numpy())
            for x in (first, second)
        )
        for name, lattice in (("transducer", ours), ("second_pass_transducer", theirs)):
            expected[name] += alignments.transducer_loss(lattice, batch.labels[b, :count], 0)
        expected["kl"] += divergence.lattice_kl(theirs, ours)
    assert {name: sums[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert expected["kl"] > 0.1
    terms = sums["transducer"] + 0.3 * sums["ctc"] + 0.1 * sums["kl"]
    assert sums["total"] == pytest.approx(terms + sums["second_pass_transducer"] + 0.3 * sums["second_pass_ctc"])


def test_the_total_is_that_of_two_objectives_on_the_same_weights(student):
    batch, weight = make_batch(), 0.5
    variables = [v.value for v in student.trainable_variables]
    with tf.GradientTape() as tape:
        (first, second), num_frames = lattices(student, batch)
        total = 0.0
        for inputs, scale in ((first, 1.0), (second, weight)):
            losses, _ = joint_tile_losses(inputs, None, batch.labels, num_frames, batch.num_labels)
            total += scale * tf.reduce_sum(losses)
    hard = Objective(ctc_weight=0.0)
    found, ours = gradient(CascadedObjective(hard, hard, weight), student, batch, None)
    expected = tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    assert found["total"] == pytest.approx(float(total), rel=1e-5) and found["kl"] == found["kl_labels"] == 0.0
    assert_close_gradients(ours, [g.numpy() for g in expected], 1e-4)


def test_distillation_in_place_teaches_the_first_pass_and_leaves_the_second_alone(student):
    only_kl = Objective(transducer_weight=0.0, ctc_weight=0.0, kl_weight=1.0)
    objective = CascadedObjective(only_kl, Objective(transducer_weight=0.0, ctc_weight=0.0))
    sums, grads = gradient(objective, student, make_batch(), None)
    moved = {v.path: np.any(g) for v, g in zip(student.trainable_variables, grads, strict=True)}
    assert sums["kl"] == pytest.approx(sums["total"]) and sums["kl"] > 0.1
    assert not any(moved[path] for path in moved if "second_pass" in path)
    for part in ("encoder/block_0/feed_forward_in", "prediction", "joint/kernel"):
        assert any(moved[path] for path in moved if part in path), part


def test_its_gradient_is_that_of_a_teacher_which_stands_still(student):
    """The shared joint network is the teacher's too: what reaches it comes through the first pass alone."""
    batch = make_batch()
    only_kl = Objective(transducer_weight=0.0, ctc_weight=0.0, kl_weight=1.0, teacher_delay=2)
    nothing = Objective(transducer_weight=0.0, ctc_weight=0.0)
    _, ours = gradient(CascadedObjective(only_kl, nothing), student, batch, None)
    frozen = JointInputs(*[tf.constant(tensor.numpy()) for tensor in lattices(student, batch)[0][1]])
    with tf.GradientTape() as tape:
        (first, _), num_frames = lattices(student, batch)
        _, kl = joint_tile_losses(first, frozen, batch.labels, num_frames, batch.num_labels, teacher_delay=2)
        kl = tf.reduce_sum(kl)
    variables = [v.value for v in student.trainable_variables]
    expected = tape.gradient(kl, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    assert_close_gradients(ours, [g.numpy() for g in expected], 1e-5)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_teacher_from_records_teaches_the_second_pass_and_the_first_where_that_does_not(
    student,
    teacher_joint,  # noqa: F811
    in_place,
):
    batch = make_batch()
    sums = numbers(CascadedObjective(SOFT, SOFT, in_place=in_place)(student, batch, teacher_joint))
    teacher = JointInputs(batch.teacher.encoded, batch.teacher.predicted, *teacher_joint)
    (first, second), num_frames = lattices(student, batch)
    utterances = batch.labels, num_frames, batch.num_labels
    taught = batch.teacher.weight
    expected = {"second_pass_kl": tf.reduce_sum(taught * joint_tile_losses(second, teacher, *utterances)[1])}
    if in_place:
        expected |= {"kl": tf.reduce_sum(joint_tile_losses(first, second, *utterances)[1]), "kl_labels": 7.0}
    else:
        expected |= {"kl": tf.reduce_sum(taught * joint_tile_losses(first, teacher, *utterances)[1]), "kl_labels": 5.0}
    assert {name: sums[name] for name in expected} == pytest.approx(numbers(expected), rel=1e-4)


def test_who_needs_records_with_a_teacher():
    hard = Objective()
    assert not CascadedObjective(hard, hard).needs_teacher and not CascadedObjective(SOFT, hard).needs_teacher
    assert CascadedObjective(hard, SOFT).needs_teacher and CascadedObjective(SOFT, hard, in_place=False).needs_teacher
    assert not CascadedObjective(hard, hard, in_place=False).needs_teacher


def test_a_band_prunes_both_passes():
    model = tiny.transducer(V, causal=True, dropout=0.0, second_pass_blocks=1, has_additive_joint=True)
    banded = dataclasses.replace(SOFT, band=Band(columns=5))  # as many as the longest utterance has
    sums = numbers(CascadedObjective(banded, Objective(band=Band(columns=5)))(model, make_batch(), None))
    whole = numbers(CascadedObjective(SOFT)(model, make_batch(), None))
    for name in ("transducer", "second_pass_transducer", "kl"):
        assert sums[name] == pytest.approx(whole[name], rel=1e-4)
    assert sums["second_pass_additive"] > 0.0


def test_nan_in_padding_changes_neither_values_nor_gradients(student):
    batch, objective = make_batch(), CascadedObjective(SOFT)
    features = batch.features.numpy()
    features[1, 30:] = np.nan
    expected, clean = gradient(objective, student, batch, None)
    found, dirty = gradient(objective, student, batch._replace(features=features), None)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_close_gradients(dirty, clean, 1e-5)


def test_an_objective_that_does_not_fit_its_model_is_refused_by_name(student):
    with pytest.raises(UserError, match=r"set Transducer\.second_pass_blocks"):
        CascadedObjective()(tiny.transducer(V, causal=True), make_batch(), None)
    with pytest.raises(UserError, match=r"take cascade\.CascadedObjective"):
        Objective()(student, make_batch(), None)


def test_in_words():
    assert CascadedObjective(SOFT, second_pass_weight=0.5).summary == (
        "1 transducer + 0.3 CTC + 0.1 KL in place, + 0.5 x (1 transducer + 0.3 CTC + 0 KL)"
    )
    assert "in place" not in CascadedObjective().summary + CascadedObjective(SOFT, SOFT, in_place=False).summary
