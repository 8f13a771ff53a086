import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.data.sentences import batch_sentences
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.saving import hash_weights
from tf_rnnt_kd.training.language_model import LanguageTraining, _make_step, make_perplexity, train_language_model
from tf_rnnt_kd.training.schedules import WarmupCosine
from tf_rnnt_kd.training.step import ReducedAdamW

_V = 6
TRAINING = LanguageTraining(
    6, WarmupCosine(2e-2, 40, 2), batch_labels=120, max_labels=12, report_every=2, evaluate_every=3, checkpoint_every=3
)


def counting(count=60, seed=0):
    """Sentences that count up: after k comes k + 1 or the end, equally often; after 5 the end."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        row = [1]
        while row[-1] < _V - 1 and rng.random() < 0.5:
            row.append(row[-1] + 1)
        rows.append(np.array(row, np.int32))
    return rows


def train(folder, training=TRAINING, sentences=None, **options):
    model = {"width": 8, "dropout": 0.1, **options}
    return train_language_model(
        "toy",
        lambda: LanguageModel(_V, **model),
        training,
        sentences or counting(),
        counting(seed=1),
        folder=str(folder),
        seed=3,
    )


def fingerprint(model):
    return hash_weights([weight.numpy() for weight in model.weights])


def test_a_restart_ends_the_same_bit_for_bit(work_dir, monkeypatch, capsys):
    whole = fingerprint(train(work_dir / "whole"))
    # Killed after step 3: the checkpoint that it leaves is that of a shorter training by the same schedule.
    train(work_dir / "parts", dataclasses.replace(TRAINING, steps=3))
    assert fingerprint(train(work_dir / "parts")) == whole
    assert ", from step 3" in capsys.readouterr().out
    assert fingerprint(train(work_dir / "whole")) == whole  # nothing is left to do


def test_it_learns_what_the_sentences_say(work_dir):
    settings = dataclasses.replace(
        TRAINING, steps=60, learning_rate=WarmupCosine(5e-2, 60, 3), evaluate_every=60, checkpoint_every=60
    )
    # Of 16 sentences 8 end after the first label, 4 after the second, and so on.
    halves = [np.arange(1, length + 1, dtype=np.int32) for length, n in enumerate((8, 4, 2, 1, 1), 1) for _ in range(n)]
    model = train(work_dir, settings, halves, dropout=0.0)
    probs = np.exp(model(np.array([[1, 2, 3, 4, 5]], np.int32))[0])
    assert probs[0, 1] > 0.95 and probs[5, 0] > 0.9
    for place in range(1, 4):
        assert abs(probs[place, 0] - 0.5) < 0.1 and abs(probs[place, place + 1] - 0.5) < 0.1


@pytest.mark.parametrize("max_labels", [2, 12])
def test_perplexity_is_that_of_every_label_and_end(max_labels):
    model = LanguageModel(_V, width=8)
    sentences = [*counting(), np.zeros([0], np.int32)]
    total, count = 0.0, 0
    for row in sentences:
        parts = [row[start : start + max_labels] for start in range(0, max(len(row), 1), max_labels)]
        for part in parts:
            log_probs = model(part[None])[0].numpy().astype(np.float64)
            targets = [*part, *([0] if part is parts[-1] else [])]
            total -= sum(log_probs[place, label] for place, label in enumerate(targets))
            count += len(targets)
    settings = dataclasses.replace(TRAINING, max_labels=max_labels, batch_labels=30)
    assert make_perplexity(model, sentences, settings)() == pytest.approx(np.exp(total / count), rel=1e-5)


def test_a_loss_that_is_lost_says_so(work_dir):
    wild = dataclasses.replace(TRAINING, learning_rate=WarmupCosine(1e30, 40, 2))
    with pytest.raises(UserError, match="training toy: the loss up to step 4 is not finite; lower the learning rate"):
        train(work_dir, wild)


def test_an_update_without_finite_gradient_moves_nothing():
    model, factor = LanguageModel(_V, width=8), tf.Variable(1.0)
    loss = model.negative_log_likelihood
    model.negative_log_likelihood = lambda *batch, **options: factor * loss(*batch, **options)
    optimizer = ReducedAdamW(1e-2, weight_decay=0.1)
    optimizer.build(model.trainable_variables)
    update = _make_step(model, optimizer, 1.0)
    batch = next(batch_sentences(counting(), batch_labels=120, max_labels=12, seed=0))
    states = []
    for value in (1.0, np.nan, 1.0):
        factor.assign(value)
        update(*batch)
        states.append([v.numpy().tobytes() for v in [*model.trainable_variables, *optimizer.variables]])
    assert states[1] == states[0] != states[2] and int(optimizer.iterations) == 2


def test_another_architecture_is_refused(work_dir):
    train(work_dir, dataclasses.replace(TRAINING, steps=1))
    with pytest.raises(UserError, match="is of another architecture"):
        train(work_dir, width=9)
