"""A transducer from whole waveforms to text as functions of plain tensors: what an export of any model holds.

Features, search and spelling are inside, so that a caller needs TensorFlow and nothing else.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_rnnt_kd.decoding.hypotheses import Hypotheses, NBest
from tf_rnnt_kd.decoding.offline import recognize
from tf_rnnt_kd.masks import zero_padding
from tf_rnnt_kd.models.transducer import Transducer

Outputs = dict[str, tf.Tensor]


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

        def transcribe(samples, num_samples):
            return _recognize(model, pieces, samples, num_samples, beam=None)

        def nbest(samples, num_samples):
            return _recognize(model, pieces, samples, num_samples, beam=beam)

        audio = [tf.TensorSpec([None, None], tf.float32, "samples"), tf.TensorSpec([None], tf.int32, "num_samples")]
        self.transcribe = tf.function(transcribe, input_signature=audio, autograph=False)
        self.nbest = tf.function(nbest, input_signature=audio, autograph=False)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Of B utterances, `samples` [B, S] in [-1, 1] and `num_samples` [B].

        `transcribe`: `text` [B], `error` [B] (empty, or why the row has no text), `scores` [B] (log-probability of the
        path), `labels`, `frames` (of 40 ms) and `label_log_probs` [B, L], of which `num_labels` [B] are real;
        `nbest`: the same by beam search, K hypotheses of an utterance, best first, on a second axis; `error` is [B].
        """
        return {
            "transcribe": self.transcribe.get_concrete_function(),
            "nbest": self.nbest.get_concrete_function(),
        }


def find_errors(samples: tf.Tensor, num_samples: tf.Tensor) -> tf.Tensor:
    """What is wrong with each row of audio: [B, S], [B] -> [B] string, empty for nothing."""
    fits = (num_samples >= 0) & (num_samples <= tf.shape(samples)[1])
    finite = tf.reduce_all(tf.math.is_finite(zero_padding(samples, num_samples)), axis=1)
    wrong = tf.where(fits, "samples are not finite", "num_samples is not within samples")
    return tf.where(fits & finite, "", wrong)


def describe(pieces: Sequence[str], found: Hypotheses | NBest) -> Outputs:
    """What a signature says about hypotheses, [B, L] or [B, K, L], without the columns that none of them fills."""
    length = tf.reduce_max(found.num_labels)
    labels, frames, log_probs = (x[..., :length] for x in (found.labels, found.frames, found.label_log_probs))
    return {
        # What lies beyond a row's length is blank, whose piece is empty.
        "text": tf.strings.reduce_join(tf.gather(tf.constant(list(pieces)), labels), axis=-1),
        "labels": labels,
        "num_labels": found.num_labels,
        "scores": found.scores,
        "frames": frames,
        "label_log_probs": log_probs,
    }


def _recognize(
    model: Transducer, pieces: Sequence[str], samples: tf.Tensor, num_samples: tf.Tensor, *, beam: int | None
) -> Outputs:
    """The hypotheses of a beam or, without one, of greedy search; none in rows that have an error."""
    error = find_errors(samples, num_samples)
    num_samples = tf.where(error == "", num_samples, 0)
    recognized = recognize(model, zero_padding(samples, num_samples), num_samples, beam=beam or 1)
    outputs = describe(pieces, recognized.nbest if beam else recognized.hypotheses)
    return {**outputs, "text": tf.strings.strip(outputs["text"]), "error": error}
