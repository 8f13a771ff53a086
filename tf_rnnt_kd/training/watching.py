"""What people see of a training: TensorBoard's charts, pictures, sound and tables, and what the console says."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.batching import Schedule
from tf_rnnt_kd.data.composition import Compositions
from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.training.memory import peak_gigabytes
from tf_rnnt_kd.training.objective import Objective, TeacherJoint
from tf_rnnt_kd.training.pictures import Pictures
from tf_rnnt_kd.training.stopwatch import Stopwatch
from tf_rnnt_kd.training.summaries import Summaries

BEST_BY = "dev_wer"  # the number of an evaluation by which checkpoints are compared
_DRAWN = 2  # utterances of which there are pictures
_UPDATE = ("gradient_norm", "learning_rate", "decoder_learning_rate", "skipped")  # all others are losses
# Settings that no result depends on: they would be columns of a table that is wide enough.
_BOOKKEEPING = (
    "input_servers",
    "report_every",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "max_skipped",
)
_HEADER = ("utterance", "WER %", "reference", "heard")

Value = bool | int | float | str


class Example(NamedTuple):
    """A row of the table.

    Attributes:
      id: of the utterance.
      wer: its word error rate, in percent.
      reference: the words that were said, each with its mark: "equal", "substitute" or "delete".
      hypothesis: the words that were heard: "equal", "substitute" or "insert".
    """

    id: str
    wer: float
    reference: Sequence[tuple[str, str]]
    hypothesis: Sequence[tuple[str, str]]


class Evaluation(NamedTuple):
    """What an evaluator found: named numbers, and some utterances to look at."""

    numbers: dict[str, float]
    examples: list[Example]


class Shown(NamedTuple):
    """Development utterances to listen to, the first of which are drawn, and the text of each label."""

    records: Sequence[Record] = ()
    pieces: Sequence[str] = ()


NOTHING = Shown()


class Watch:
    """Tells of one training; only who has a folder writes.

    Args:
      folder: of TensorBoard events, or None.
      sets: what is trained on.
      schedule: of the batches.
      first: step that the training goes on from.
    """

    def __init__(self, folder: str | None, sets: Sequence[RecordSet], schedule: Schedule, first: int):
        self._summaries, self._step, self._wer = Summaries(folder), first, None
        self._compositions = Compositions(sets, schedule)
        self.stopwatch = Stopwatch(schedule.bucket, schedule.buckets.seconds)

    def begin(self, settings: dict[str, Value], shown: Shown, features: tuple[tf.Tensor, tf.Tensor]) -> None:
        """What is the same all the time: settings, sound, and features [B, N, F] before and after SpecAugment."""
        self._summaries.write_settings(settings)
        self._summaries.write_spectrograms(0, *features)
        for record in shown.records:
            self._summaries.write_audio(0, f"audio/{record.id}", record.samples, record.text)

    def report(self, step: int, found: dict[str, np.ndarray], rates: dict[str, float]) -> str:
        """Writes the numbers of the steps since the last report; returns those for the console.

        Args:
          step: the last of them.
          found: the metrics of each.
          rates: learning rates.
        """
        seconds, times = self.stopwatch.lap()
        means = {name: float(np.mean(values)) for name, values in found.items()} | rates
        means["skipped"] = float(np.sum(found["skipped"]))
        speed = float(np.sum(found["seconds"])) / max(seconds, 1e-9)
        del means["seconds"]
        numbers = {_tag(name): value for name, value in means.items()}
        numbers["time/audio_hours_per_hour"] = speed
        numbers |= {f"time/{name}": value for name, value in times.items()}
        content = self._compositions.of_steps(self._step, step)
        numbers["input/frame_padding"], numbers["input/label_padding"] = content.frame_padding, content.label_padding
        numbers |= {f"input/utterances_{name}": count for name, count in content.utterances.items()}
        numbers |= {f"memory/{name}_gigabytes": peak for name, peak in peak_gigabytes().items()}
        self._summaries.write_numbers(step, numbers)
        self._step = step
        return ", ".join(self._note(means, speed))

    def _note(self, means, speed) -> Iterator[str]:
        yield f"loss {means['loss']:.3f}"
        if "kl_per_node" in means:
            yield f"KL {means['kl_per_node']:.3f} a node"
        if means["skipped"]:
            yield f"{means['skipped']:.0f} skipped"
        if self._wer is not None:
            yield f"dev WER {self._wer:.2f} %"
        yield f"{speed:.0f} audio-h/h"

    def evaluated(self, step: int, evaluation: Evaluation, pictures: Pictures) -> None:
        """Writes what an evaluation found, and draws."""
        self._wer = evaluation.numbers.get(BEST_BY, self._wer)
        self._summaries.write_images(step, dict(pictures.draw(step)))
        rows = [(e.id, f"{e.wer:.1f}", e.reference, e.hypothesis) for e in evaluation.examples]
        self._summaries.write_table(step, "hypotheses", _HEADER, rows)
        self._summaries.write_numbers(step, evaluation.numbers)


def make_pictures(
    model: Transducer,
    objective: Objective,
    joint: TeacherJoint | None,
    sets: Sequence[RecordSet],
    shown: Shown,
) -> Pictures:
    """Pictures of the first utterances with targets, where the teacher comes from records; else of development.

    None of a set that holds features in place of audio.
    """
    records = shown.records[:_DRAWN]
    if objective.needs_teacher:
        taught = next(s for s in sets if s.targets is not None)
        first = [] if taught.features_dtype else taught.read(0, 8 * _DRAWN)
        records = [r for r in first if r.encoded is not None or r.logits is not None][:_DRAWN]
    return Pictures(model, objective, joint, records if shown.pieces else [], shown.pieces)


def flatten_settings(**parts: object) -> dict[str, Value]:
    """Dataclasses, learning-rate schedules and values as `{"training.buckets.batch_seconds": 60.0, ...}`."""
    flat: dict[str, Value] = {}
    for name, value in parts.items():
        if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
            value = value.get_config()
        elif dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value) if field.name not in _BOOKKEEPING]
            value = {inner: getattr(value, inner) for inner in names}
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": found for inner, found in flatten_settings(**value).items()}
        elif isinstance(value, Value):
            flat[name] = value
        elif value is not None:
            flat[name] = str(value)
    return flat


def _tag(name: str) -> str:
    """Where a number stands on the page."""
    if name == "loss":
        return name
    return f"update/{name}" if name in _UPDATE else f"loss/{name}"
