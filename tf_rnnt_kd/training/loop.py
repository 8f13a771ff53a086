"""The training loop: from a factory for a model to a trained model, through any number of restarts."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.pipeline import Augmentation, Buckets, common_targets, make_schedule, read_batches
from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.progress import Progress, say
from tf_rnnt_kd.training.checkpoints import TrainingCheckpoint
from tf_rnnt_kd.training.memory import available_bytes, check_memory
from tf_rnnt_kd.training.objective import Objective, TeacherJoint
from tf_rnnt_kd.training.step import ReducedAdamW, make_train_step
from tf_rnnt_kd.training.summaries import Summaries


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
      steps: updates.
      buckets: shapes and sizes of batches.
      learning_rate: a Keras learning-rate schedule.
      augmentation: SpecAugment of the student's input.
      labelled_fraction: part of each batch that has human transcripts, where there is pseudo-labelled speech too.
      weight_decay: of AdamW.
      beta_2: of AdamW.
      clip_norm: largest global norm of the gradient.
      precision: Keras dtype policy: "float32" or "mixed_bfloat16".
      jit_compile: compile forward and backward with XLA.
      report_every: steps between numbers for TensorBoard.
      evaluate_every: steps between evaluations on the development set.
      checkpoint_every: steps between checkpoints.
    """

    steps: int
    buckets: Buckets
    learning_rate: keras.optimizers.schedules.LearningRateSchedule
    augmentation: Augmentation = Augmentation()
    labelled_fraction: float = 1.0
    weight_decay: float = 1e-2
    beta_2: float = 0.98
    clip_norm: float = 1.0
    precision: str = "float32"
    jit_compile: bool = False
    report_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 200


class Evaluation(NamedTuple):
    """What an evaluator found: named numbers, and some (reference, hypothesis) pairs to look at."""

    numbers: dict[str, float]
    examples: list[tuple[str, str]]


class Trained(NamedTuple):
    """A trained model and what it took."""

    model: Transducer
    steps: int
    seconds: float


def train(
    name: str,
    model_factory: Callable[[], Transducer],
    objective: Objective,
    training: Training,
    labelled: Sequence[RecordSet],
    pseudo_labelled: Sequence[RecordSet],
    *,
    folder: str,
    seed: int,
    strategy: tf.distribute.Strategy,
    evaluators: Sequence[Callable[[Transducer], Evaluation]] = (),
) -> Trained:
    """Trains to the last step, from the newest checkpoint in `folder` if there is one.

    Args:
      name: what progress lines call this run.
      model_factory: builds the student; called once, inside the strategy's scope.
      objective: what to minimise.
      training: how.
      labelled: sets with human transcripts.
      pseudo_labelled: sets that a teacher labelled.
      folder: of checkpoints and TensorBoard events.
      seed: of weights, dropout, order and augmentation.
      strategy: see `make_strategy`.
      evaluators: functions of the model, run every `evaluate_every` steps and at the end.

    Raises:
      UserError: if the data, the teacher or the checkpoint does not fit, or the loss is lost to NaN.
    """
    run = _Run(name, model_factory, objective, training, labelled, pseudo_labelled, folder, seed, strategy)
    run.evaluators = evaluators
    run.fit()
    return Trained(run.model, training.steps, run.seconds)


class _Run:
    """The state of one training run."""

    def __init__(self, name, model_factory, objective, training, labelled, pseudo_labelled, folder, seed, strategy):
        self.name, self.training, self.strategy, self.seed = name, training, strategy, seed
        self.sets = [*labelled, *pseudo_labelled]
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(training.precision)
        with strategy.scope():
            self.model = model_factory()
            self.optimizer = ReducedAdamW(
                training.learning_rate, weight_decay=training.weight_decay, beta_2=training.beta_2
            )
            self.optimizer.build(self.model.trainable_variables)
            self.checkpoint = TrainingCheckpoint(os.path.join(folder, "checkpoints"), self.model, self.optimizer)
        self.summaries = Summaries(os.path.join(folder, "tensorboard"))
        self.schedule = make_schedule(
            labelled,
            pseudo_labelled,
            training.buckets,
            num_steps=training.steps,
            labelled_fraction=training.labelled_fraction,
            seed=seed,
        )
        rooms = self.schedule.num_labels
        check_memory(self.model, objective, training.buckets, rooms, available_bytes())
        self.with_teacher = objective.needs_teacher
        self.step = make_train_step(
            self.model,
            self.optimizer,
            objective,
            _teacher_joint(self.sets, self.model) if self.with_teacher else None,
            clip_norm=training.clip_norm,
            jit_compile=training.jit_compile,
        )

    def fit(self):
        first = self.checkpoint.restore()
        self.seconds, self.start = float(self.checkpoint.seconds.numpy()), time.monotonic()
        self._announce(first)
        if first == 0:
            self._show_features()
        batches = self.strategy.experimental_distribute_dataset(self._batches(first, self.training.augmentation))
        step_function = tf.function(
            lambda batch: self.step(self.strategy, batch), input_signature=[batches.element_spec], autograph=False
        )
        recent = []
        with Progress(f"train {self.name}", self.training.steps, "steps", first) as progress, _named_shards(self.sets):
            for step, batch in zip(range(first + 1, self.training.steps + 1), batches, strict=False):
                recent.append(step_function(batch))
                if step % self.training.report_every == 0 or step == self.training.steps:
                    progress.update(step, self._report(step, recent))
                    recent = []
                self._pause(step)

    def _pause(self, step):
        """What happens between steps: evaluation, then a checkpoint, so that a restart does not evaluate twice."""
        last = step == self.training.steps
        if last or step % self.training.evaluate_every == 0:
            self._evaluate(step)
        if last or step % self.training.checkpoint_every == 0:
            now = time.monotonic()
            self.seconds, self.start = self.seconds + now - self.start, now
            self.checkpoint.save(step, self.seconds)

    def _batches(self, first, augmentation):
        return read_batches(
            self.sets,
            self.schedule,
            first_step=first,
            augmentation=augmentation,
            seed=self.seed,
            with_teacher=self.with_teacher,
        )

    def _announce(self, first):
        utterances = sum(s.num_utterances for s in self.sets)
        hours = sum(s.seconds for s in self.sets) / 3600
        skipped = "".join(f", {count} skipped ({reason})" for reason, count in self.schedule.skipped.items())
        at = f", from step {first}" if first else ""
        size = self.model.count_params() / 1e6
        say(f"  {self.name}: {size:.2f} M parameters, {utterances} utterances, {hours:.2f} h{skipped}{at}")

    def _show_features(self):
        plain = Augmentation(num_frequency_masks=0, num_time_masks=0)
        before, after = (next(iter(self._batches(0, a))).features for a in (plain, self.training.augmentation))
        self.summaries.write_spectrograms(0, before, after)

    def _report(self, step, recent):
        means = {name: float(np.mean([metrics[name].numpy() for metrics in recent])) for name in recent[0]}
        if means.pop("skipped") == 1.0:
            raise UserError(
                f"training {self.name}: no update of the last {len(recent)} up to step {step} had a finite gradient; "
                "lower the learning rate, or look at the data of these steps"
            )
        elapsed = self.seconds + time.monotonic() - self.start
        means["audio_seconds_per_second"] = means.pop("seconds") * step / max(elapsed, 1e-9)
        means["learning_rate"] = float(self.optimizer.learning_rate)
        self.summaries.write_numbers(step, means)
        return f"loss {means['loss']:.3f}" + (f" kl {means['kl']:.2f}" if self.with_teacher else "")

    def _evaluate(self, step):
        for evaluate in self.evaluators:
            numbers, examples = evaluate(self.model)
            self.summaries.write_numbers(step, numbers)
            self.summaries.write_text(step, "hypotheses", examples)
            shown = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
            say(f"  {self.name}: step {step}: {shown}")


@contextlib.contextmanager
def _named_shards(sets: Sequence[RecordSet]) -> Iterator[None]:
    """TensorFlow says that some record is corrupt, not which file it is in: that is looked up when it happens."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError):
        for records in sets:
            records.verify()
        raise


def _teacher_joint(sets: Sequence[RecordSet], model: Transducer) -> TeacherJoint | None:
    """Kernel and bias of factored targets, None for stored lattices; targets that don't fit the student are refused."""
    spec = common_targets(sets)
    if spec is None:
        raise UserError(
            "the objective has a KL term, but no record set carries teacher targets: label one with a codec"
        )
    owner = next(s for s in sets if s.targets is not None)
    for what, theirs, ours in (
        ("vocabulary size", spec.vocabulary_size, model.vocabulary_size),
        ("blank id", spec.blank_id, model.blank_id),
        ("frame duration in ms", spec.frame_ms, 40),
    ):
        if theirs != ours:
            raise UserError(
                f"{owner.folder}: the teacher's {what} is {theirs}, the student's is {ours}: they must agree"
            )
    if spec.codec != "factored":
        return None
    return TeacherJoint(tf.constant(owner.kernel), tf.constant(owner.bias))
