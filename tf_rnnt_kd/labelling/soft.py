"""Soft targets: what of a teacher's lattice goes into a record, by codec."""

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.schema import TargetsSpec
from tf_rnnt_kd.models.transducer import Transducer

FRAME_MS = 40


def make_spec(model: Transducer, codec: str, dtype: str, teacher_hash: str) -> TargetsSpec:
    """Describes the targets that `teacher_fields` gives."""
    width = model.joint_width if codec == "factored" else 0
    return TargetsSpec(codec, dtype, width, model.vocabulary_size, model.blank_id, teacher_hash, FRAME_MS)


def joint_arrays(model: Transducer) -> tuple[np.ndarray, np.ndarray]:
    """The joint's kernel [D, V] and bias [V], float32: stored once per set with factored targets."""
    return model.joint_kernel.numpy().astype(np.float32), model.joint_bias.numpy().astype(np.float32)


def teacher_fields(
    model: Transducer, spec: TargetsSpec, encoded: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
    """The target fields of one record.

    Args:
      model: the teacher.
      spec: codec and stored dtype.
      encoded: [T, D] valid frames of the utterance, as they enter the joint's tanh.
      predicted: [U+1, D] states of the utterance's labels, likewise.

    Returns:
      `encoded` [T, D] and `predicted` [U+1, D], or `logits` [T, U+1, V].
    """
    dtype = tf.as_dtype(spec.dtype).as_numpy_dtype
    if spec.codec == "factored":
        return {"encoded": encoded.astype(dtype), "predicted": predicted.astype(dtype)}
    return {"logits": _lattice(model, encoded, predicted).numpy().astype(dtype)}


def codec_error(model: Transducer, spec: TargetsSpec, encoded: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over nodes of KL(teacher || teacher as stored), in nats: what the codec and its dtype lose.

    Args: as for `teacher_fields`.
    """
    exact = tf.nn.log_softmax(_lattice(model, encoded, predicted))
    fields = teacher_fields(model, spec, encoded, predicted)
    stored = {name: value.astype(np.float32) for name, value in fields.items()}
    read = stored["logits"] if spec.codec == "lattice" else _lattice(model, **stored)
    difference = tf.exp(exact) * (exact - tf.nn.log_softmax(read))  # [T, U+1, V]
    return float(tf.reduce_mean(tf.reduce_sum(difference, axis=-1)))


def _lattice(model, encoded, predicted):
    return model.join(tf.constant(encoded)[:, None], tf.constant(predicted)[None])  # [T, U+1, V]
