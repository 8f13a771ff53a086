"""Small padded batches for the loss tests."""

from typing import NamedTuple

import numpy as np

from tf_rnnt_kd.losses import JointInputs


class LatticeBatch(NamedTuple):
    """Logits of two models on the same lattices."""

    teacher: np.ndarray  # [B, T, U+1, V]
    student: np.ndarray  # [B, T, U+1, V]
    labels: np.ndarray  # [B, U]
    num_frames: np.ndarray  # [B]
    num_labels: np.ndarray  # [B]

    def utterance(self, values: np.ndarray, index: int) -> np.ndarray:
        """[T, U+1, ...] of one utterance, without padding."""
        return values[index, : self.num_frames[index], : self.num_labels[index] + 1]

    def labels_of(self, index: int) -> np.ndarray:
        return self.labels[index, : self.num_labels[index]]


class JointBatch(NamedTuple):
    """Inputs of two joint networks on the same lattices."""

    student: JointInputs
    teacher: JointInputs
    labels: np.ndarray
    num_frames: np.ndarray
    num_labels: np.ndarray

    def utterance(self, inputs: JointInputs, index: int) -> tuple[np.ndarray, ...]:
        """(encoded [T, D], predicted [U+1, D], kernel, bias) of one utterance, without padding."""
        encoded = inputs.encoded[index, : self.num_frames[index]]
        return encoded, inputs.predicted[index, : self.num_labels[index] + 1], inputs.kernel, inputs.bias

    def labels_of(self, index: int) -> np.ndarray:
        return self.labels[index, : self.num_labels[index]]


def lattice_batch(seed: int, *, batch=3, frames=4, labels=4, vocabulary=5, blank_id=0, scale=1.0) -> LatticeBatch:
    """Random lengths (one utterance fills the batch), NaN and impossible labels in the padding."""
    random = np.random.default_rng(seed)
    num_frames, num_labels = _lengths(random, batch, frames, labels)
    shape = (batch, frames, labels + 1, vocabulary)
    teacher, student = (scale * random.standard_normal(shape).astype(np.float32) for _ in range(2))
    for b in range(batch):
        for logits in (teacher, student):
            logits[b, num_frames[b] :] = np.nan
            logits[b, :, num_labels[b] + 1 :] = np.inf
    return LatticeBatch(
        teacher, student, _labels(random, num_labels, labels, vocabulary, blank_id), num_frames, num_labels
    )


def joint_batch(
    seed: int, *, batch=3, frames=7, labels=4, width=5, teacher_width=6, vocabulary=6, blank_id=0, lengths=None
) -> JointBatch:
    """The same for joint inputs; `lengths` are (frames, labels) of each utterance if not random."""
    random = np.random.default_rng(seed)
    if lengths is None:
        num_frames, num_labels = _lengths(random, batch, frames, labels)
    else:
        num_frames, num_labels = (np.array(values, np.int32) for values in lengths)
        batch = len(num_frames)
    models = []
    for size in (width, teacher_width):
        shapes = ((batch, frames, size), (batch, labels + 1, size), (size, vocabulary), (vocabulary,))
        inputs = JointInputs(*(random.standard_normal(shape).astype(np.float32) for shape in shapes))
        for b in range(batch):
            inputs.encoded[b, num_frames[b] :] = np.nan
            inputs.predicted[b, num_labels[b] + 1 :] = np.inf
        models.append(inputs)
    return JointBatch(*models, _labels(random, num_labels, labels, vocabulary, blank_id), num_frames, num_labels)


def _lengths(random, batch, frames, labels):
    num_frames = random.integers(1, frames + 1, batch).astype(np.int32)
    num_labels = random.integers(0, labels + 1, batch).astype(np.int32)
    num_frames[0], num_labels[0] = frames, labels
    return num_frames, num_labels


def _labels(random, num_labels, labels, vocabulary, blank_id):
    classes = [k for k in range(vocabulary) if k != blank_id]
    result = random.choice(classes, (len(num_labels), labels)).astype(np.int32)
    for b, count in enumerate(num_labels):
        result[b, count:] = -7
    return result
