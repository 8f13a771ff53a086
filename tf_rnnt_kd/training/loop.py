"""The training loop: from a factory for a model to a trained model, through any number of restarts."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.batching import Buckets, check_divisible, make_schedule, utterance_ids
from tf_rnnt_kd.data.pipeline import WHOLE, Augmentation, named_shards, read_batches
from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.options import (
    Address,
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    FractionInside,
    NotNegative,
    OneOf,
    Positive,
    checked,
)
from tf_rnnt_kd.preemption import Preempted, deferred
from tf_rnnt_kd.progress import Progress, say
from tf_rnnt_kd.training.averages import averaged, take_averages
from tf_rnnt_kd.training.checkpoints import TrainingCheckpoint
from tf_rnnt_kd.training.memory import available_bytes, check_memory
from tf_rnnt_kd.training.objective import Objective, TeacherJoint, find_teacher_joint
from tf_rnnt_kd.training.profiling import Profiler, Steps
from tf_rnnt_kd.training.step import (
    ReducedAdamW,
    check_undivided,
    decoder_rates,
    make_call,
    make_train_step,
    weight_noise,
)
from tf_rnnt_kd.training.strategy import distribute_batches, is_chief, num_workers, of_chief, total_of_workers
from tf_rnnt_kd.training.watching import BEST_BY, NOTHING, Evaluation, Shown, Watch, flatten_settings, make_pictures

# Others train without a word and learn nothing: float16 needs its loss scaled.
PRECISIONS = ("float32", "mixed_bfloat16")


@checked
@dataclasses.dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
      steps: batches; one whose update is skipped counts, though nothing moves, the learning rate's schedule neither.
      buckets: shapes and sizes of batches.
      learning_rate: a Keras learning-rate schedule.
      augmentation: SpecAugment of the student's input.
      labelled_fraction: part of each batch that has human transcripts, where there is pseudo-labelled speech too.
      weight_decay: of AdamW.
      beta_2: of AdamW.
      clip_norm: largest global norm of the gradient.
      l2: weight of `sum w^2 / 2` over matrices.
      decoder_rate: learning rate of the prediction and the joint network, in units of `learning_rate`.
      accumulation: micro-batches that a replica makes of its part of a batch, to save memory.
      ema_decay: of averages of the weights, which are evaluated and exported in their place; 0 for none.
      variational_noise: deviation of the noise on weights while gradients are computed (Graves 2011); 0 for none.
      first_noisy_step: there is no such noise before; in updates made.
      max_skipped: updates without finite gradient, one after the other, that end the run.
      precision: Keras dtype policy: "float32" or "mixed_bfloat16". No other: float16 would need its loss scaled.
      jit_compile: compile forward and backward with XLA.
      steps_per_call: most steps in one call of the graph, which spares the host of an accelerator; a call ends where
        something is to be reported, evaluated or saved.
      input_servers: "host:port" of machines that prepare the input, see `data.input_servers`; none for this one.
      report_every: steps between numbers for TensorBoard.
      evaluate_every: steps between evaluations on the development set.
      checkpoint_every: steps between checkpoints.
      keep_checkpoints: how many of the newest stay, besides the best on the development set.
      handed_on: which weights a finished training has: of the "last" step, or the "best" on the development set.
    """

    steps: Count
    buckets: Buckets
    learning_rate: keras.optimizers.schedules.LearningRateSchedule
    augmentation: Augmentation = Augmentation()
    labelled_fraction: Fraction = 1.0
    weight_decay: Fraction = 1e-2
    beta_2: FractionInside = 0.98
    clip_norm: Positive = 1.0
    l2: NotNegative = 0.0
    decoder_rate: NotNegative = 1.0
    accumulation: Count = 1
    ema_decay: FractionBelowOne = 0.0
    variational_noise: NotNegative = 0.0
    first_noisy_step: CountOrZero = 0
    max_skipped: Count = 50
    precision: Annotated[str, OneOf(PRECISIONS)] = "float32"
    jit_compile: bool = False
    steps_per_call: Count = 1
    input_servers: tuple[Address, ...] = ()
    report_every: Count = 50
    evaluate_every: Count = 500
    checkpoint_every: Count = 200
    keep_checkpoints: Count = 2
    handed_on: Annotated[str, OneOf(("last", "best"))] = "last"

    def next_stop(self, step: int) -> int:
        """The next step after `step` at which the graph is left."""
        every = self.report_every, self.evaluate_every, self.checkpoint_every
        return min(step + self.steps_per_call, self.steps, *(step - step % n + n for n in every))


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
    shown: Shown = NOTHING,
    profile: Steps | None = None,
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
      shown: utterances that TensorBoard plays and draws.
      profile: steps to trace.

    Raises:
      UserError: if the data, the teacher or the checkpoint does not fit, or the loss is lost to NaN.
    """
    run = _Run(name, model_factory, objective, training, labelled, pseudo_labelled, folder, seed, strategy)
    run.evaluators, run.shown, run.profile = evaluators, shown, profile
    with named_shards(run.sets):
        run.fit()
    return Trained(run.model, training.steps, run.seconds)


class _Run:
    """The state of one training run."""

    def __init__(self, name, model_factory, objective, training, labelled, pseudo_labelled, folder, seed, strategy):
        self.name, self.training, self.strategy, self.seed = name, training, strategy, seed
        self.sets = [*labelled, *pseudo_labelled]
        self.chief, self.skipped = is_chief(strategy), 0
        num_replicas = strategy.num_replicas_in_sync
        check_divisible(training.buckets, num_replicas, training.accumulation)
        check_undivided(f"training {name}", objective, training.accumulation, training.jit_compile, num_replicas)
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(training.precision)
        with strategy.scope():
            self.model = model_factory()
            self.optimizer = make_optimizer(training, self.model)
            self.optimizer.build(self.model.trainable_variables)
            self.checkpoint = TrainingCheckpoint(
                os.path.join(folder, "checkpoints"),
                self.model,
                self.optimizer,
                keep=training.keep_checkpoints,
                writes=self.chief,
            )
        self.tensorboard = os.path.join(folder, "tensorboard") if self.chief else None
        self.schedule = make_schedule(
            labelled,
            pseudo_labelled,
            training.buckets,
            num_steps=training.steps,
            labelled_fraction=training.labelled_fraction,
            seed=seed,
        )
        rooms = self.schedule.num_labels
        parts = training.accumulation * num_workers(strategy)
        check_memory(self.model, objective, training.buckets, rooms, available_bytes(), parts)
        self.objective = objective
        self.joint = find_teacher_joint(self.sets, self.model) if objective.needs_teacher else None
        self.step = make_step(self.model, self.optimizer, objective, training, self.joint, seed)

    def fit(self):
        first = self.checkpoint.restore()
        _check_agreement(self.strategy, self.name, first)
        self.seconds, self.start = self.checkpoint.seconds, time.monotonic()
        self._announce(first)
        self.watch = Watch(self.tensorboard, self.sets, self.schedule, first)
        if first == 0 and self.chief:
            self._introduce()
        if first < self.training.steps:
            self.pictures = make_pictures(self.model, self.objective, self.joint, self.sets, self.shown)
            with deferred() as is_preempted:
                with self.checkpoint:
                    stopped = self._take_steps(first, is_preempted)
                of_chief(self.strategy, 0)  # which may still be writing
                if stopped:
                    raise Preempted
        if self.training.handed_on == "best" and self.chief:
            wer, step = self.checkpoint.restore_best()
            say(f"  {self.name}: hands on step {step}, {BEST_BY} {wer:.2f}")
        take_averages(self.model, self.optimizer)

    def _take_steps(self, step, is_preempted):
        """Trains to the end, or until it is to be left: then true."""
        read = functools.partial(self._batches, step, self.training.augmentation, servers=self.training.input_servers)
        call = make_call(self.strategy, self.step, self.training.steps_per_call)
        iterator, recent = iter(distribute_batches(self.strategy, read)), []
        progress = Progress(f"train {self.name}", self.training.steps, "steps", step, interval=0.0)
        profiler = Profiler(self.tensorboard, self.profile)
        with progress, profiler:
            while step < self.training.steps:
                stop = self.training.next_stop(step)
                profiler.before(step, stop)
                count = tf.constant(stop - step)
                recent.append(self.watch.stopwatch.time(functools.partial(call, iterator, count), step, stop))
                step = stop
                profiler.after(step, recent[-1])
                if step % self.training.report_every == 0 or step == self.training.steps:
                    progress.update(step, self._report(step, recent))
                    recent = []
                with self.watch.stopwatch.pausing():
                    if self._pause(step, is_preempted):
                        return True
        return False

    def _pause(self, step, is_preempted):
        """Between steps: evaluation, then a checkpoint, so that a restart does not evaluate twice. True: stop here."""
        last, wer = step == self.training.steps, None
        if last or step % self.training.evaluate_every == 0:
            wer = self._evaluate(step)
        stopping = self._is_stopped(step, is_preempted)
        due = last or stopping or step % self.training.checkpoint_every == 0
        if due or self.checkpoint.is_best(wer):
            now = time.monotonic()
            self.seconds, self.start = self.seconds + now - self.start, now
            self.checkpoint.save(step, self.seconds, wer)
        return stopping

    def _is_stopped(self, step, is_preempted):
        """Whether to save and leave: several workers ask each other only when they report, as they have to agree."""
        if num_workers(self.strategy) == 1:
            return is_preempted()
        asks = step % self.training.report_every == 0 or step == self.training.steps
        return asks and total_of_workers(self.strategy, is_preempted()) > 0

    def _batches(self, first, augmentation, share=WHOLE, servers=()):
        return read_batches(
            self.sets,
            self.schedule,
            first_step=first,
            augmentation=augmentation,
            seed=self.seed,
            with_teacher=self.objective.needs_teacher,
            share=share,
            servers=servers,
        )

    def _announce(self, first):
        utterances = sum(s.num_utterances for s in self.sets)
        hours = sum(s.seconds for s in self.sets) / 3600
        skipped = "".join(f", {count} skipped ({reason})" for reason, count in self.schedule.skipped.items())
        at = f", from step {first}" if first else ""
        size = self.model.count_params() / 1e6
        say(f"  {self.name}: {size:.2f} M parameters, {utterances} utterances, {hours:.2f} h{skipped}{at}")

    def _introduce(self):
        plain = Augmentation(num_frequency_masks=0, num_time_masks=0)
        features = tuple(next(iter(self._batches(0, a))).features for a in (plain, self.training.augmentation))
        parts = {"training": self.training, "objective": self.objective, "seed": self.seed}
        settings = flatten_settings(generation=self.name, parameters=self.model.count_params(), **parts)
        self.watch.begin(settings, self.shown, features)

    def _report(self, step, recent):
        found = {name: np.concatenate([metrics[name].numpy() for metrics in recent]) for name in recent[0]}
        self._count_skipped(step - len(found["skipped"]), found["skipped"])
        rates = {"learning_rate": float(self.optimizer.learning_rate)}
        if self.training.decoder_rate != 1.0:
            rates["decoder_learning_rate"] = self.training.decoder_rate * rates["learning_rate"]
        return self.watch.report(step, found, rates)

    def _count_skipped(self, step, skipped):
        """Stops a run that no longer learns; `skipped` are flags of the steps after `step`."""
        limit = min(self.training.max_skipped, self.training.steps)
        for at, flag in enumerate(skipped, step + 1):
            self.skipped = self.skipped + 1 if flag else 0
            if self.skipped == limit:
                ids = ", ".join(utterance_ids(self.sets, self.schedule, at - 1))
                raise UserError(
                    f"training {self.name}: no update of the last {limit} up to step {at} had a finite gradient; "
                    f"lower the learning rate, or look at the utterances of that step: {ids}"
                )

    def _evaluate(self, step):
        """Runs the evaluators; returns the word error rate by which checkpoints are compared, if one found it."""
        wer = None
        for evaluate in self.evaluators if self.chief else ():
            with averaged(self.model, self.optimizer):
                evaluation = evaluate(self.model)
                self.watch.evaluated(step, evaluation, self.pictures)
            numbers = evaluation.numbers
            shown = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
            say(f"  {self.name}: step {step}: {shown}")
            wer = numbers.get(BEST_BY, wer)
        return wer


def make_optimizer(training: Training, model: Transducer) -> ReducedAdamW:
    """The optimizer that `training` asks for, not yet built."""
    rates = decoder_rates(model, training.decoder_rate) if training.decoder_rate != 1.0 else None
    averages = {"use_ema": True, "ema_momentum": training.ema_decay} if training.ema_decay else {}
    return ReducedAdamW(
        training.learning_rate, rates=rates, weight_decay=training.weight_decay, beta_2=training.beta_2, **averages
    )


def make_step(
    model: Transducer,
    optimizer: ReducedAdamW,
    objective: Objective,
    training: Training,
    teacher_joint: TeacherJoint | None,
    seed: int,
) -> Callable:
    """`make_train_step` with what `training` says."""
    return make_train_step(
        model,
        optimizer,
        objective,
        teacher_joint,
        clip_norm=training.clip_norm,
        jit_compile=training.jit_compile,
        accumulation=training.accumulation,
        l2=training.l2,
        noise=_make_noise(training, model, seed),
    )


def _make_noise(training: Training, model: Transducer, seed: int) -> Callable | None:
    if not training.variational_noise:
        return None
    return weight_noise(model.trainable_variables, training.variational_noise, training.first_noisy_step, seed)


def _check_agreement(strategy: tf.distribute.Strategy, name: str, first: int) -> None:
    """All workers go on from the same checkpoint."""
    theirs = of_chief(strategy, first)
    if first != theirs:
        raise UserError(
            f"training {name}: this worker found the checkpoint of step {first}, the chief that of step {theirs}: "
            "give all workers the same --work_dir, on storage that they share"
        )
