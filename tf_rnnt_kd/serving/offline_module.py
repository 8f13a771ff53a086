"""A transducer from whole waveforms to text as functions of plain tensors: what an export of any model holds.

Features, search and spelling are inside, so that a caller needs TensorFlow and nothing else.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_rnnt_kd.decoding.hypotheses import Hypotheses, NBest
from tf_rnnt_kd.decoding.offline import recognize
from tf_rnnt_kd.masks import zero_padding
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.serving import rows

Outputs = dict[str, tf.Tensor]

AUDIO = {
    "samples": tf.TensorSpec([None, None], tf.float32, "samples"),
    "num_samples": tf.TensorSpec([None], tf.int32, "num_samples"),
}


class OfflineModule(tf.Module):
    """Whole utterances only: all that a model with full context can do.

    Args:
      model: the transducer.
      pieces: text of each label, with a space where a word begins; that of blank is empty.
      beam: hypotheses of `nbest`.
    """

    def __init__(self, model: Transducer, pieces: Sequence[str], *, beam: int = 8):
        super().__init__(name="recognizer")
        # A flat list: TensorFlow does not track the variables of layers that Keras keeps in lists. `model` is held by
        # closures alone: as an attribute it would bring Keras's own functions into the export.
        self.parameters = [variable.value for variable in model.weights]

        def recognize_with(beam):
            def recognize(samples, num_samples):
                audio = rows.fit_together({"samples": samples, "num_samples": num_samples}, AUDIO)
                return _recognize(model, pieces, **audio, beam=beam)

            return tf.function(recognize, input_signature=list(AUDIO.values()), autograph=False)

        self.transcribe, self.nbest = recognize_with(None), recognize_with(beam)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Of B utterances, `samples` [B, S] in [-1, 1] and `num_samples` [B].

        `transcribe`: `text` [B], `error` [B] (empty, or why the row has no text), `scores` [B] (log-probability of the
        path), `labels`, `frames` (of 40 ms) and `label_log_probs` [B, L], of which `num_labels` [B] are real;
        `nbest`: the same by beam search, up to K hypotheses of an utterance, each of another text, best first, on a
        second axis; `error` is [B]; the score is that of the text, by all the ways in which the search spelled it, and
        -inf where there is no hypothesis. Inputs of unequal batch sizes are refused (`InvalidArgumentError`).
        """
        return {
            "transcribe": self.transcribe.get_concrete_function(),
            "nbest": self.nbest.get_concrete_function(),
        }


def describe(pieces: Sequence[str], found: Hypotheses | NBest) -> Outputs:
    """What a signature says about hypotheses, [B, L] or [B, K, L], without the columns that none of them fills."""
    length = tf.reduce_max(found.num_labels)
    labels, frames, log_probs = (x[..., :length] for x in (found.labels, found.frames, found.label_log_probs))
    return {
        "text": _spell(pieces, labels),
        "labels": labels,
        "num_labels": found.num_labels,
        "scores": found.scores,
        "frames": frames,
        "label_log_probs": log_probs,
    }


def distinct(pieces: Sequence[str], found: NBest) -> NBest:
    """Each text once: hypotheses that differ in spaces only are one, as probable as all of them and else the best.

    Best first as before; the places of those that are joined to others are at the end and of no hypothesis.
    """
    key = tf.strings.strip(tf.strings.regex_replace(_spell(pieces, found.labels), " +", " "))  # [B, K]
    exists = found.scores > -float("inf")
    same = (key[:, :, None] == key[:, None, :]) & exists[:, :, None] & exists[:, None, :]  # [B, K, K]
    is_first = exists & (tf.argmax(tf.cast(same, tf.int32), axis=2, output_type=tf.int32) == tf.range(key.shape[1]))
    joined = tf.reduce_logsumexp(tf.where(same, found.scores[:, None, :], -float("inf")), axis=2)
    # Rounding must not change what was alone.
    scores = tf.where(tf.reduce_sum(tf.cast(same, tf.int32), axis=2) > 1, joined, found.scores)
    scores = tf.where(is_first, scores, -float("inf"))
    order = tf.argsort(scores, axis=1, direction="DESCENDING", stable=True)
    kept = tf.nest.map_structure(lambda x: tf.where(_as_wide_as(x, is_first), x, tf.zeros_like(x)), found)
    return tf.nest.map_structure(lambda x: tf.gather(x, order, batch_dims=1), kept._replace(scores=scores))


def _as_wide_as(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    return mask if values.shape.rank == 2 else mask[..., None]


def _spell(pieces: Sequence[str], labels: tf.Tensor) -> tf.Tensor:
    """[..., L] -> [...] string. What lies beyond a row's length is blank, whose piece is empty."""
    return tf.strings.reduce_join(tf.gather(tf.constant(list(pieces)), labels), axis=-1)


def _recognize(
    model: Transducer, pieces: Sequence[str], samples: tf.Tensor, num_samples: tf.Tensor, *, beam: int | None
) -> Outputs:
    """The hypotheses of a beam or, without one, of greedy search; none in rows that have an error."""
    error = rows.find_errors(samples, num_samples)
    num_samples = tf.where(error == "", num_samples, 0)
    recognized = recognize(model, zero_padding(samples, num_samples), num_samples, beam=beam or 1)
    encoded = zero_padding(recognized.encoded, recognized.num_frames)
    finite = rows.are_finite([encoded, recognized.hypotheses.scores])
    error = tf.where(finite | (error != ""), error, rows.LOST)
    found = distinct(pieces, recognized.nbest) if beam else recognized.hypotheses
    outputs = describe(pieces, rows.silence(found, error != ""))
    return {**outputs, "text": tf.strings.strip(outputs["text"]), "error": error}
