"""Pictures of lattices and alignments: what a student has learnt of an utterance, beside what its teacher says."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_rnnt_kd import drawing
from tf_rnnt_kd.batch import Batch, TeacherTargets
from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.decoding.greedy import greedy_search
from tf_rnnt_kd.features.log_mel import FRAME_STEP, SAMPLE_RATE, log_mel, num_log_mel_frames
from tf_rnnt_kd.losses import JointInputs, lattice
from tf_rnnt_kd.losses.distillation import DIVERGENCES
from tf_rnnt_kd.losses.readings import Utterances, read_teacher
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import NUM_FEATURE_BINS, Transducer
from tf_rnnt_kd.training.objective import Lattice, Lesson, Objective, TeacherJoint

_FRAME_SECONDS = REDUCTION * FRAME_STEP / SAMPLE_RATE
_TEACHER, _STUDENT = (255, 150, 40), (235, 40, 70)
_PROBABILITY, _NATS = (1e-2, 1.0), (1e-3, 10.0)  # where the colours begin and end, the same in all pictures
_PASSES = ("", "second_pass_")
_BAND_HERTZ = (250, 500, 1000, 2000, 4000)


class Alignments(NamedTuple):
    """How one lattice aligns the labels of an utterance.

    Attributes:
      posterior: [T, U+1] float32, the probability that an alignment visits a node.
      frames: [U] int32, in which the best alignment emits each label; -1 where there is none.
    """

    posterior: tf.Tensor
    frames: tf.Tensor


class View(NamedTuple):
    """What is drawn of an utterance and one pass of the model.

    Attributes:
      student: of the labels.
      teacher: likewise, or None.
      kl: [T, U+1] float32, in nats, from the teacher to the student at each node, as the objective compares them; NaN
        where they are not compared. None without a teacher.
      delay: scalar integer, of the student behind the teacher in this comparison, in frames.
      heard: [L] int32, what greedy search finds.
      heard_frames: [L] int32, where.
    """

    student: Alignments
    teacher: Alignments | None
    kl: tf.Tensor | None
    delay: tf.Tensor
    heard: tf.Tensor
    heard_frames: tf.Tensor


class Pictures:
    """Draws the same utterances again and again.

    Arcs, posteriors and paths are those of the losses, tile by tile: memory O(T U) and a tile, whatever V is.

    Args:
      model: the student.
      objective: what it learns by; says what each pass is taught.
      teacher_joint: of a factored teacher.
      records: the utterances, but for those shorter than a frame; with the targets in them, where the objective's
        teacher comes from records.
      pieces: the text of each label, with a space where a word starts.
    """

    def __init__(
        self,
        model: Transducer,
        objective: Objective,
        teacher_joint: TeacherJoint | None,
        records: Sequence[Record],
        pieces: Sequence[str],
    ):
        self._model, self._objective, self._joint, self._pieces = model, objective, teacher_joint, pieces
        # What is shorter than an encoder frame has no lattice.
        self._records = [r for r in records if num_log_mel_frames(len(r.samples)) >= REDUCTION]

    def draw(self, step: int) -> Iterator[tuple[str, np.ndarray]]:
        """(name, [H, W, 3] uint8) of each picture, at the model's present weights."""
        for record in self._records:
            batch = make_batch(record)
            for name, view in zip(_PASSES, self._views(batch), strict=False):
                view = tf.nest.map_structure(lambda v: None if v is None else v.numpy(), view)
                title = f"{record.id}, step {step}"
                tokens = [self._token(label) for label in record.labels]
                yield f"lattice/{name}{record.id}", draw_lattice(title, view, tokens)
                heard = [self._token(label) for label in view.heard]
                features = batch.features[0].numpy()
                yield f"alignment/{name}{record.id}", draw_alignment(title, features, view, tokens, heard)

    @functools.cached_property
    def _views(self):
        """Traced once, when it is first wanted, for utterances of any length."""

        def views(batch: Batch) -> list[View]:
            read = self._objective.read_lattices(self._model, batch, self._joint, training=False)
            return [
                see(self._model, objective, batch, *seen)
                for objective, seen in zip(self._objective.passes, read, strict=True)
            ]

        like = make_batch(self._records[0])
        signature = tf.nest.map_structure(lambda v: tf.TensorSpec([None] * v.shape.rank, v.dtype), like)
        return tf.function(views, input_signature=[signature], autograph=False)

    def _token(self, label: int) -> str:
        text = self._pieces[label] if 0 <= label < len(self._pieces) else f"#{label}"
        return text.replace(" ", "_")


def make_batch(record: Record) -> Batch:
    """One utterance, of a frame or more, as training sees it, without augmentation and padding."""
    features = log_mel(tf.constant(record.samples[None] / 32768.0, tf.float32))  # [1, N, F]
    num_features = num_log_mel_frames(len(record.samples)) // REDUCTION * REDUCTION
    features = features[:, :num_features]  # [1, 4T, F]
    has_teacher = record.encoded is not None or record.logits is not None
    empty = np.zeros([0, 0], np.float32), np.zeros([0, 0], np.float32), np.zeros([0, 0, 0], np.float32)
    stored = (record.encoded, record.predicted, record.logits)
    targets = [
        tf.constant((other if values is None else values).astype(np.float32)[None])
        for values, other in zip(stored, empty, strict=True)
    ]
    return Batch(
        features=features,
        num_features=tf.constant([num_features]),
        labels=tf.constant(record.labels[None], tf.int32),
        num_labels=tf.constant([len(record.labels)]),
        teacher=TeacherTargets(*targets, tf.constant([float(has_teacher)])),
        source=tf.constant([record.source]),
    )


def see(model: Transducer, objective: Objective, batch: Batch, read: Lattice, lesson: Lesson) -> View:
    """One pass over a batch of one utterance, in a graph."""
    student = JointInputs(read.encoded, read.predicted, model.joint_kernel, model.joint_bias)
    utterances = Utterances(batch.labels, read.num_frames, batch.num_labels, model.blank_id)
    found = greedy_search(
        read.encoded,
        read.num_frames,
        join=model.join,
        initial_prediction=model.initial_prediction,
        step_prediction=model.step_prediction,
        blank_id=model.blank_id,
    )
    heard = found.labels[0, : found.num_labels[0]], found.frames[0, : found.num_labels[0]]
    ours = _align(utterances, student)
    if lesson.teacher is None:
        return View(ours, None, None, tf.constant(0), *heard)
    kl, delay = _compare(objective, utterances, student, lesson.teacher)
    return View(ours, _align(utterances, lesson.teacher), kl, delay, *heard)


def _align(utterances: Utterances, inputs: JointInputs | tf.Tensor) -> Alignments:
    arcs = utterances.arcs(inputs)
    lengths = utterances.num_frames, utterances.num_labels
    return Alignments(lattice.occupancies(*arcs, *lengths).node[0], lattice.best_path(*arcs, *lengths)[0][0])


def _compare(objective, utterances, student, teacher):
    """(KL a node [T, U+1], the delay); distances between whole alignments are shown by the nodes' too."""
    kl = objective.kl if objective.kl in DIVERGENCES else "lattice"
    delay = objective.teacher_delay
    reading = read_teacher(utterances, student, teacher, kl, objective.temperature, delay, False, 1)
    nodes = utterances.nodes(student, reading.teacher, divergence=reading.divergence, temperature=objective.temperature)
    early = tf.range(tf.shape(nodes.divergence)[1])[:, None] < reading.delay  # no counterpart
    return tf.where(early, float("nan"), nodes.divergence[0]), tf.convert_to_tensor(reading.delay)


def draw_lattice(title: str, view: View, tokens: Sequence[str]) -> np.ndarray:
    """Posteriors, the KL of each node, and the best paths over all of them: [H, W, 3] uint8.

    Time goes to the right, labels go up: an alignment is in row u while u labels have been emitted, and crosses into
    the next row where its token stands at the axis.

    Args:
      title: of the picture.
      view: arrays of one utterance.
      tokens: text of each label.
    """
    num_frames, columns = view.student.posterior.shape
    paths = [_path("student's best path", _STUDENT, view.student.frames, num_frames)]
    if view.teacher is not None:
        paths.append(_path("teacher's best path", _TEACHER, view.teacher.frames, num_frames))
    names = [(row, token) for row, token in enumerate(tokens, 1)]

    def panel(what, values, limits):
        return drawing.Panel(what, values.T, limits, names, [p for p in paths if p], logarithmic=True)

    panels = [panel("student: probability of being at a node", view.student.posterior, _PROBABILITY)]
    if view.teacher is not None:
        panels.insert(0, panel("teacher: probability of being at a node", view.teacher.posterior, _PROBABILITY))
        late = f", teacher delayed by {1000 * view.delay * _FRAME_SECONDS:.0f} ms" if view.delay else ""
        panels.append(panel(f"KL at a node, nats{late}", view.kl, _NATS))
    return drawing.draw(title, panels, num_frames * _FRAME_SECONDS)


def _path(name, color, frames, num_frames):
    """The line of an alignment; None where there is none."""
    if np.any(frames < 0):
        return None
    corners = [(frame + 0.5, row + side) for row, frame in enumerate(frames) for side in (0.5, 1.5)]
    return drawing.Path(name, color, [(0.0, 0.5), *corners, (float(num_frames), len(frames) + 0.5)])


def draw_alignment(
    title: str, features: np.ndarray, view: View, tokens: Sequence[str], heard: Sequence[str]
) -> np.ndarray:
    """The speech, and above it where best alignments and greedy search emit their tokens: [H, W, 3] uint8.

    Args:
      title: of the picture.
      features: [4T, F] float32, log-mel.
      view: arrays of one utterance.
      tokens: text of each label.
      heard: text of each label that was heard.
    """
    rows = [("heard", drawing.INK, heard, view.heard_frames), ("student", _STUDENT, tokens, view.student.frames)]
    if view.teacher is not None:
        rows.append(("teacher", _TEACHER, tokens, view.teacher.frames))
    marks = []
    for name, color, words, frames in rows:
        emitted = [(REDUCTION * (frame + 0.5), word) for frame, word in zip(frames, words, strict=True) if frame >= 0]
        marks.append(drawing.Marks(name, color, [x for x, _ in emitted], [word for _, word in emitted]))
    names = [(_mel_row(hertz), f"{hertz} Hz") for hertz in _BAND_HERTZ]
    panel = drawing.Panel("log-mel energy", features.T, (-2.0, 2.0), names, marks=marks)
    return drawing.draw(title, [panel], len(features) * FRAME_STEP / SAMPLE_RATE)


def _mel_row(hertz: float) -> float:
    """Where a frequency is among the mel bins, in cells."""
    low, high, here = (np.log1p(f / 700.0) for f in (20.0, 7_600.0, hertz))
    return float((here - low) / (high - low) * (NUM_FEATURE_BINS + 1) - 0.5)
