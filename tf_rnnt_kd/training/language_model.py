"""Training of a language model: from sentences to a trained model, through any number of restarts. On one device."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.sentences import batch_sentences
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.options import Count, Fraction, FractionInside, Positive, checked
from tf_rnnt_kd.preemption import deferred
from tf_rnnt_kd.progress import Progress, say
from tf_rnnt_kd.training.checkpoints import TrainingCheckpoint
from tf_rnnt_kd.training.step import ReducedAdamW
from tf_rnnt_kd.training.summaries import Summaries

_SIGNATURE = [
    tf.TensorSpec([None, None], tf.int32),
    tf.TensorSpec([None], tf.int32),
    tf.TensorSpec([None], tf.bool),
]


@checked
@dataclasses.dataclass(frozen=True)
class LanguageTraining:
    """How to train a language model.

    Attributes:
      steps: updates.
      learning_rate: a Keras learning-rate schedule.
      batch_labels: in a batch, padding included.
      max_labels: longer sentences are cut into rows of so many.
      weight_decay: of AdamW.
      beta_2: of AdamW.
      clip_norm: largest global norm of the gradient.
      report_every: steps between numbers for TensorBoard.
      evaluate_every: steps between perplexities of the development text.
      checkpoint_every: steps between checkpoints.
    """

    steps: Count
    learning_rate: keras.optimizers.schedules.LearningRateSchedule
    batch_labels: Count = 4096
    max_labels: Count = 256
    weight_decay: Fraction = 1e-2
    beta_2: FractionInside = 0.98
    clip_norm: Positive = 1.0
    report_every: Count = 50
    evaluate_every: Count = 500
    checkpoint_every: Count = 200


def train_language_model(
    name: str,
    model_factory: Callable[[], LanguageModel],
    training: LanguageTraining,
    sentences: Sequence[Sequence[int]],
    development: Sequence[Sequence[int]],
    *,
    folder: str,
    seed: int,
) -> LanguageModel:
    """Trains to the last step, from the newest checkpoint in `folder` if there is one.

    Args:
      name: what progress lines call this run.
      model_factory: builds the model; called once.
      training: how.
      sentences: label ids to learn; held in memory.
      development: label ids whose perplexity is shown.
      folder: of checkpoints and TensorBoard events.
      seed: of weights, dropout and order.

    Raises:
      UserError: if the checkpoint is of another architecture, or the loss is lost to NaN.
    """
    keras.utils.set_random_seed(seed)
    model = model_factory()
    optimizer = ReducedAdamW(training.learning_rate, weight_decay=training.weight_decay, beta_2=training.beta_2)
    optimizer.build(model.trainable_variables)
    checkpoint = TrainingCheckpoint(os.path.join(folder, "checkpoints"), model, optimizer)
    summaries = Summaries(os.path.join(folder, "tensorboard"))
    update = _make_step(model, optimizer, training.clip_norm)
    evaluate = make_perplexity(model, development, training)
    first = checkpoint.restore()
    seconds, start = checkpoint.seconds, time.monotonic()
    at = f", from step {first}" if first else ""
    say(f"  {name}: {model.count_params() / 1e6:.2f} M parameters, {len(sentences)} sentences{at}")
    sizes = {"batch_labels": training.batch_labels, "max_labels": training.max_labels}
    batches = batch_sentences(sentences, **sizes, seed=seed, first=first)
    recent = []
    watched = Progress(f"train {name}", training.steps, "steps", first)
    with watched as progress, deferred() as is_preempted, checkpoint:
        for step, batch in zip(range(first + 1, training.steps + 1), batches, strict=False):
            recent.append(float(update(*batch)))
            last = step == training.steps
            if last or step % training.report_every == 0:
                loss = _mean_loss(name, step, recent)
                summaries.write_numbers(step, {"loss": loss, "update/learning_rate": float(optimizer.learning_rate)})
                progress.update(step, f"loss {loss:.3f}")
                recent = []
            if last or step % training.evaluate_every == 0:
                found = evaluate()
                summaries.write_numbers(step, {"dev_perplexity": found})
                say(f"  {name}: step {step}: perplexity {found:.3f} a label")
            stopping = is_preempted()
            if last or stopping or step % training.checkpoint_every == 0:
                checkpoint.save(step, seconds + time.monotonic() - start)
            if stopping:
                break
    return model


def make_perplexity(
    model: LanguageModel, sentences: Sequence[Sequence[int]], training: LanguageTraining
) -> Callable[[], float]:
    """Returns a function that finds exp of the mean -log P of a label, ends of sentences counted too. Traces once.

    Args:
      model: whose.
      sentences: label ids, at least one.
      training: gives the sizes of batches, and where long sentences are cut.
    """
    sizes = {"batch_labels": training.batch_labels, "max_labels": training.max_labels}
    rows = sum(max(1, -(-len(sentence) // training.max_labels)) for sentence in sentences)
    batches = []
    for batch in batch_sentences(sentences, **sizes, seed=0):  # one pass
        batches.append(batch)
        rows -= len(batch.ends)
        if not rows:
            break
    count = sum(int(batch.num_labels.sum() + batch.ends.sum()) for batch in batches)
    loss = tf.function(model.negative_log_likelihood, input_signature=_SIGNATURE, autograph=False)

    def perplexity() -> float:
        return float(np.exp(sum(float(tf.reduce_sum(loss(*batch))) for batch in batches) / count))

    return perplexity


def _make_step(model: LanguageModel, optimizer: ReducedAdamW, clip_norm: float):
    """Returns (labels, num_labels, ends) -> loss a label; an update whose gradient is not finite moves nothing."""
    variables = [variable.value for variable in model.trainable_variables]

    def step(labels, num_labels, ends):
        count = tf.reduce_sum(num_labels) + tf.reduce_sum(tf.cast(ends, tf.int32))
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(model.negative_log_likelihood(labels, num_labels, ends, training=True))
            loss = total / tf.cast(tf.maximum(count, 1), tf.float32)
        clipped, norm = tf.clip_by_global_norm(tape.gradient(loss, variables), clip_norm)
        optimizer.apply(clipped, model.trainable_variables, tf.math.is_finite(norm))
        return loss

    return tf.function(step, input_signature=_SIGNATURE, autograph=False)


def _mean_loss(name: str, step: int, recent: list[float]) -> float:
    mean = float(np.mean(recent))
    if not np.isfinite(mean):
        raise UserError(f"training {name}: the loss up to step {step} is not finite; lower the learning rate")
    return mean
