import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tests.toy import tone_utterances
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.pipeline import Augmentation
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.saving import hash_weights
from tf_rnnt_kd.preemption import MARKER, leaving_resumable
from tf_rnnt_kd.training.averages import averaged
from tf_rnnt_kd.training.loop import _Run, train
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.step import ReducedAdamW
from tf_rnnt_kd.training.strategy import make_strategy
from tf_rnnt_kd.training.summaries import Summaries
from tf_rnnt_kd.training.watching import Evaluation

ROOT = pathlib.Path(__file__).parents[2]


class Killed(Exception):
    """Stands for whatever ends a process."""


def usual(**changes):
    common = {"checkpoint_every": 3, "evaluate_every": 4, "report_every": 2, "labelled_fraction": 0.3}
    return tiny.training(6, **common, **changes)


def run(folder, labelled, pseudo=(), *, objective=None, evaluators=(), settings=None, **model):
    return train(
        "toy",
        lambda: tiny.transducer(**model),
        objective or Objective(),
        settings or usual(),
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


@pytest.mark.slow  # tracing, five times
def test_six_steps_killed_once_and_stopped_once_equal_six_bit_for_bit(soft, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("loop")
    seen = []

    def watch(model):
        seen.append(fingerprint(model))
        return Evaluation({"dev_wer": 50.0}, [])

    def die(model):
        raise Killed

    def stop(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return watch(model)

    soft = {**soft, "settings": usual(steps_per_call=2)}
    whole = run(folder / "whole", **soft, evaluators=[watch])
    with pytest.raises(Killed):  # after step 4: the checkpoint of step 3 is the newest
        run(folder / "parts", **soft, evaluators=[die])
    soft["settings"] = usual(steps_per_call=5)
    with pytest.raises(SystemExit) as end, leaving_resumable(str(folder), is_child=False):
        run(folder / "parts", **soft, evaluators=[stop])
    assert end.value.code == 0 and (folder / MARKER).exists()
    assert ", from step 3" in capsys.readouterr().out
    resumed = run(folder / "parts", **soft, evaluators=[watch])
    assert ", from step 4" in capsys.readouterr().out
    assert whole.steps == resumed.steps == 6 and whole.seconds > 0.0
    assert fingerprint(resumed.model) == fingerprint(whole.model)
    # Steps 4 and 6 of both, two steps a call and as many as fit between stops; and a model that moved in between.
    assert seen[:2] == seen[2:] and seen[0] != seen[1]
    assert any(name.startswith("events") for name in os.listdir(folder / "whole" / "tensorboard"))
    # A third start has nothing left to do and gives the same model.
    assert fingerprint(run(folder / "whole", **soft).model) == fingerprint(whole.model)
    # Of two that are equal on the development set, the first is the best.
    best = run(folder / "parts", **{**soft, "settings": usual(steps_per_call=5, handed_on="best")})
    assert fingerprint(best.model) == seen[0] and "hands on step 4, dev_wer 50.00" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_goes_from_one_device_to_two_replicas_and_back(toy_records, work_dir):
    command = [sys.executable, "-m", "tests.training.moves", str(work_dir), toy_records.folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", from step 2") == 1 and done.stdout.count(", from step 4") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"handed_on": "first"}, "handed_on is 'first': none of last, best"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        (
            {"precision": "mixed_float16"},
            "precision is 'mixed_float16': none of float32, mixed_bfloat16: did you mean mixed_bfloat16",
        ),
        ({"precision": "float16"}, "none of float32, mixed_bfloat16"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        usual(**change)


def test_the_loss_falls_on_the_toy_language(toy_records, tmp_path_factory, written):
    settings = tiny.training(60, peak=1e-2, report_every=20, augmentation=Augmentation(num_time_masks=1))
    run(tmp_path_factory.mktemp("loop"), [toy_records], settings=settings, dropout=0.0)
    losses = [numbers["loss"] for _, numbers in written]
    assert [step for step, _ in written] == [20, 40, 60]
    assert losses[2] < losses[1] < losses[0] and losses[2] < 0.7 * losses[0]
    wanted = ("loss/transducer", "loss/ctc", "update/gradient_norm", "update/skipped", "update/learning_rate")
    wanted += ("time/audio_hours_per_hour", "input/frame_padding", "input/label_padding", "memory/host_gigabytes")
    assert set(wanted) <= set(written[0][1]) and any("time/bucket_2s" in numbers for _, numbers in written)
    names = [name for name in written[0][1] if name.startswith("input/utterances_")]
    rows = sum(tiny.BUCKETS.batch_size(k) for k in _buckets_of(toy_records, 20))
    assert [written[0][1][name] for name in names] == [rows]
    assert all(np.isfinite(value) for _, numbers in written for value in numbers.values())


def _buckets_of(records, steps):
    return make_schedule([records], [], tiny.BUCKETS, num_steps=60, labelled_fraction=1.0, seed=5).bucket[:steps]


def test_training_that_is_lost_to_nan_says_so(toy_records, work_dir):
    settings = tiny.training(4, report_every=4, max_skipped=2)
    with pytest.raises(UserError, match="training toy: no update of the last 2 up to step 2 had a finite") as refused:
        run(work_dir, [toy_records], objective=Objective(transducer_weight=3e38), settings=settings)
    schedule = make_schedule([toy_records], [], tiny.BUCKETS, num_steps=4, labelled_fraction=1.0, seed=5)
    rows = schedule.rows[1][schedule.rows[1] >= 0]
    named = refused.value.message.split("look at the utterances of that step: ")[1]
    assert named.split(", ") == [toy_records.ids[row] for row in rows] and len(rows) > 1


def test_skipped_updates_end_a_run_when_they_follow_each_other(toy_records):
    run = object.__new__(_Run)
    run.name, run.sets, run.skipped = "toy", [toy_records], 0
    run.training = tiny.training(20, max_skipped=3)
    run.schedule = make_schedule([toy_records], [], tiny.BUCKETS, num_steps=20, labelled_fraction=1.0, seed=5)
    run._count_skipped(0, np.array([1.0, 1.0, 0.0, 1.0]))
    run._count_skipped(4, np.array([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(UserError, match="no update of the last 3 up to step 9 had"):
        run._count_skipped(8, np.array([1.0, 0.0]))


def test_calls_end_where_something_is_to_be_done():
    settings = tiny.training(23, steps_per_call=4, report_every=10, evaluate_every=6, checkpoint_every=9)
    stops = [0]
    while stops[-1] < 23:
        stops.append(settings.next_stop(stops[-1]))
    assert stops == [0, 4, 6, 9, 10, 12, 16, 18, 20, 23]
    assert [tiny.training(3).next_stop(step) for step in range(3)] == [1, 2, 3]


def test_a_batch_that_does_not_divide_is_refused(toy_records, work_dir):
    with pytest.raises(UserError, match=r"a batch of 1.2 s has 6 utterances, .* 1 replicas x 4 micro-batches .*= 4,"):
        run(work_dir, [toy_records], settings=tiny.training(2, accumulation=4))


def test_averaged_weights_are_there_for_a_while_and_the_others_come_back():
    model = tiny.transducer(dropout=0.0)
    optimizer = ReducedAdamW(1e-2, use_ema=True, ema_momentum=0.5)
    optimizer.build(model.trainable_variables)
    expected = [v.numpy() for v in model.trainable_variables]
    for step in range(3):
        optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
        kept = 0.5 if step else 0.0
        expected = [kept * a + (1 - kept) * v.numpy() for a, v in zip(expected, model.trainable_variables, strict=True)]
    before = weights(model)
    with pytest.raises(Killed), averaged(model, optimizer):
        for variable, average, old in zip(model.trainable_variables, expected, before, strict=True):
            np.testing.assert_allclose(variable, average, rtol=1e-5)
            assert np.any(variable.numpy() != old)
        raise Killed
    for variable, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, old)
    plain = ReducedAdamW(1e-2)
    plain.build(model.trainable_variables)
    with averaged(model, plain):
        assert fingerprint(model)[1] == [float(np.sum(w, dtype=np.float64)).hex() for w in before]


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

    model, optimizer = tiny.transducer(joint_width=13), ReducedAdamW(1e-3)
    optimizer.build(model.trainable_variables)
    TrainingCheckpoint(str(work_dir / "checkpoints"), model, optimizer).save(3, 0.0)
    with pytest.raises(UserError, match="of another architecture"):
        run(work_dir, [toy_records])


def test_a_shard_that_changed_since_it_was_opened_ends_the_training_with_its_name(toy_tokenizer, work_dir):
    records = tiny.write_set(work_dir / "records", toy_tokenizer, tone_utterances(num_utterances=8, seed=1))
    os.truncate(records.shards[0], 0)
    with pytest.raises(UserError, match="00000-of-00001.tfrecord is damaged: its sha256 differs"):
        run(work_dir, [records])
