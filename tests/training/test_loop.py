import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tf_rnnt_kd.data.pipeline import Augmentation
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.saving import hash_weights
from tf_rnnt_kd.training.loop import Evaluation, train
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.strategy import make_strategy
from tf_rnnt_kd.training.summaries import Summaries


class Killed(Exception):
    """Stands for whatever ends a process."""


def run(folder, labelled, pseudo=(), *, objective=None, evaluators=(), settings=None, **model):
    return train(
        "toy",
        lambda: tiny.transducer(**model),
        objective or Objective(),
        settings or tiny.training(6, checkpoint_every=3, evaluate_every=4, report_every=2, labelled_fraction=0.3),
        labelled,
        pseudo,
        folder=str(folder),
        seed=5,
        strategy=make_strategy("one_device"),
        evaluators=evaluators,
    )


def weights(model):
    return [v.numpy() for v in model.weights]


def fingerprint(model):
    return hash_weights(weights(model)), [float(np.sum(w, dtype=np.float64)).hex() for w in weights(model)]


@pytest.fixture
def written(monkeypatch):
    """What goes to TensorBoard: (step, numbers)."""
    calls = []
    monkeypatch.setattr(Summaries, "write_numbers", lambda self, step, numbers: calls.append((step, numbers)))
    return calls


@pytest.fixture(scope="module")
def soft(toy_records, toy_targets):
    """Everything at once: labelled and pseudo-labelled speech, soft targets, dropout, SpecAugment."""
    return {"labelled": [toy_records], "pseudo": [toy_targets["factored"]], "objective": Objective(kl_weight=0.01)}


@pytest.mark.slow  # tracing, four times
def test_three_steps_a_restart_and_three_steps_equal_six_bit_for_bit(soft, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("loop")
    seen = []

    def watch(model):
        seen.append(fingerprint(model))
        return Evaluation({"dev_wer": 50.0}, [("AB", "A")])

    def die(model):
        raise Killed

    whole = run(folder / "whole", **soft, evaluators=[watch])
    with pytest.raises(Killed):  # after step 4: the checkpoint of step 3 is the newest
        run(folder / "parts", **soft, evaluators=[die])
    resumed = run(folder / "parts", **soft, evaluators=[watch])
    assert ", from step 3" in capsys.readouterr().out
    assert whole.steps == resumed.steps == 6 and whole.seconds > 0.0
    assert fingerprint(resumed.model) == fingerprint(whole.model)
    # Steps 4 and 6 of both; and a model that moved in between.
    assert seen[:2] == seen[2:] and seen[0] != seen[1]
    assert any(name.startswith("events") for name in os.listdir(folder / "whole" / "tensorboard"))
    # A third start has nothing left to do and gives the same model.
    assert fingerprint(run(folder / "whole", **soft).model) == fingerprint(whole.model)


def test_the_loss_falls_on_the_toy_language(toy_records, tmp_path_factory, written):
    settings = tiny.training(60, peak=1e-2, report_every=20, augmentation=Augmentation(num_time_masks=1))
    run(tmp_path_factory.mktemp("loop"), [toy_records], settings=settings, dropout=0.0)
    losses = [numbers["loss"] for _, numbers in written]
    assert [step for step, _ in written] == [20, 40, 60]
    assert losses[2] < losses[1] < losses[0] and losses[2] < 0.7 * losses[0]
    assert {"transducer", "ctc", "gradient_norm", "audio_seconds_per_second", "learning_rate"} <= set(written[0][1])
    assert all(np.isfinite(value) for _, numbers in written for value in numbers.values())


def test_training_that_is_lost_to_nan_says_so(toy_records, work_dir):
    settings = tiny.training(2, report_every=2)
    with pytest.raises(UserError, match="training toy: no update of the last 2 up to step 2 had a finite gradient"):
        run(work_dir, [toy_records], objective=Objective(transducer_weight=float("nan")), settings=settings)


def test_soft_targets_without_a_labelled_set_are_refused(toy_records, work_dir):
    with pytest.raises(UserError, match="KL term, but no record set carries teacher targets: label one with a codec"):
        run(work_dir, [toy_records], objective=Objective(kl_weight=0.1))


def test_a_teacher_with_another_vocabulary_is_refused_with_both_sizes(soft, work_dir):
    with pytest.raises(UserError, match="the teacher's vocabulary size is 6, the student's is 7: they must agree"):
        run(work_dir, **soft, vocabulary_size=7)


@pytest.mark.parametrize(("field", "value", "words"), [("blank_id", 5, "blank id"), ("frame_ms", 80, "frame duration")])
def test_a_teacher_that_does_not_fit_is_refused(soft, toy_targets, work_dir, field, value, words):
    manifest = dict(toy_targets["factored"].manifest)
    manifest["targets"] = {**manifest["targets"], field: value}
    other = dataclasses.replace(toy_targets["factored"], manifest=manifest)
    with pytest.raises(UserError, match=f"{words}.* is {value}, the student's is"):
        run(work_dir, **{**soft, "pseudo": [other]})


def test_a_checkpoint_of_another_architecture_is_refused(toy_records, work_dir):
    from tf_rnnt_kd.training.checkpoints import TrainingCheckpoint
    from tf_rnnt_kd.training.step import ReducedAdamW

    model, optimizer = tiny.transducer(joint_width=13), ReducedAdamW(1e-3)
    optimizer.build(model.trainable_variables)
    TrainingCheckpoint(str(work_dir / "checkpoints"), model, optimizer).save(3, 0.0)
    with pytest.raises(UserError, match="of another architecture"):
        run(work_dir, [toy_records])


def test_summaries_are_written_where_tensorboard_looks(work_dir):
    summaries = Summaries(str(work_dir))
    summaries.write_numbers(1, {"loss": 2.5})
    summaries.write_text(1, "hypotheses", [("A B", "A")])
    noise = tf.random.stateless_normal([4, 10, 80], [0, 0])
    summaries.write_spectrograms(1, noise, noise)
    summaries._writer.flush()
    (path,) = [os.path.join(work_dir, name) for name in os.listdir(work_dir)]
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(path) for value in event.summary.value}
    assert tags == {"loss", "hypotheses", "features/before", "features/after_spec_augment"}
