"""A transducer from waveform to text as functions of plain tensors: what an export holds.

All state is explicit: a server keeps one dictionary of tensors for each session, in any process, and may stack sessions
into one batch. Features, search and spelling are inside, so that a caller needs TensorFlow and nothing else.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_rnnt_kd.decoding.offline import recognize
from tf_rnnt_kd.decoding.streaming import SearchState, search_chunk
from tf_rnnt_kd.features.log_mel import FRAME_LENGTH, FRAME_STEP, log_mel, num_log_mel_frames
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import Transducer

State = dict[str, tf.Tensor]


class OfflineModule(tf.Module):
    """Whole utterances only: all that a model with full context can do.

    Args:
      model: the transducer.
      pieces: text of each label, with a space where a word begins; that of blank is empty.
    """

    def __init__(self, model: Transducer, pieces: Sequence[str]):
        super().__init__(name="recognizer")
        # A flat list: TensorFlow does not track the variables of layers that Keras keeps in lists. `model` is held by
        # closures alone: as an attribute it would bring Keras's own functions into the export.
        self.parameters = [variable.value for variable in model.weights]

        def transcribe(samples, num_samples):
            return {"text": _transcribe(model, pieces, samples, num_samples)}

        self.transcribe = tf.function(
            transcribe,
            input_signature=[
                tf.TensorSpec([None, None], tf.float32, "samples"),
                tf.TensorSpec([None], tf.int32, "num_samples"),
            ],
            autograph=False,
        )

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """`transcribe(samples [B, S], num_samples [B]) -> text [B]`."""
        return {"transcribe": self.transcribe.get_concrete_function()}


class StreamingModule(OfflineModule):
    """Whole utterances, and streams that give the same text chunk by chunk.

    Args:
      model: a causal transducer.
      pieces: text of each label, with a space where a word begins; that of blank is empty.
    """

    def __init__(self, model: Transducer, pieces: Sequence[str]):
        super().__init__(model, pieces)
        self._state_spec = {
            name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name)
            for name, tensor in _initial_state(model, 1).items()
        }
        self._state_spec["pending"] = tf.TensorSpec([None, None], tf.float32, "pending")

        def step(samples, **state):
            return self._with_known_shapes(_step(model, pieces, samples, state))

        def flush(**state):
            return self._with_known_shapes(_flush(model, pieces, state))

        def initial_state():
            return self._with_known_shapes(_initial_state(model, 1))

        self.step = tf.function(step, autograph=False)
        self.flush = tf.function(flush, autograph=False)
        self.initial_state = tf.function(initial_state, input_signature=[], autograph=False)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Those of `OfflineModule`, and those of a stream of B sessions.

        `initial_state() -> state` of one session; every tensor has the batch first: repeat it for B sessions;
        `step(samples [B, n], **state) -> {text [B], labels [B, k], num_labels [B], **state}` for any n, also 0; text
        comes when a chunk of the encoder is full;
        `flush(**state)`: the same at the end of the audio, with the text of a last chunk that is not full and the state
        of a new session. Samples that do not fill an encoder frame have no text (offline search drops them too).
        """
        samples = tf.TensorSpec([None, None], tf.float32, "samples")
        return {
            **super().signatures(),
            "initial_state": self.initial_state.get_concrete_function(),
            "step": self.step.get_concrete_function(samples=samples, **self._state_spec),
            "flush": self.flush.get_concrete_function(**self._state_spec),
        }

    def _with_known_shapes(self, outputs: State) -> State:
        for name, spec in self._state_spec.items():
            outputs[name].set_shape(spec.shape)
        return outputs


def _transcribe(model: Transducer, pieces: Sequence[str], samples: tf.Tensor, num_samples: tf.Tensor) -> tf.Tensor:
    hypotheses = recognize(model, samples, num_samples).hypotheses
    return tf.strings.strip(_spell(pieces, hypotheses.labels))


def _step(model: Transducer, pieces: Sequence[str], samples: tf.Tensor, state: State) -> State:
    samples = tf.concat([state["pending"], samples], axis=1)
    features, pending = _take_features(samples, model.encoder.chunk)
    return _recognize(model, pieces, features, {**state, "pending": pending})


def _flush(model: Transducer, pieces: Sequence[str], state: State) -> State:
    fresh = _initial_state(model, tf.shape(state["pending"])[0])
    if model.encoder.chunk == 1:  # all whole frames have been heard
        empty = tf.fill([tf.shape(state["pending"])[0]], "")
        nothing = tf.zeros([tf.shape(empty)[0], 0], tf.int32)
        return {"text": empty, "labels": nothing, "num_labels": tf.reduce_sum(nothing, axis=1), **fresh}
    return {**_recognize(model, pieces, _take_features(state["pending"], 1)[0], state), **fresh}


def _recognize(model: Transducer, pieces: Sequence[str], features: tf.Tensor, state: State) -> State:
    encoded, encoder_state = model.stream(features, _flat(state, "encoder"))  # [B, n, D]
    num_frames = tf.fill([tf.shape(encoded)[0]], tf.shape(encoded)[1])
    hypotheses, search = search_chunk(
        encoded,
        num_frames,
        SearchState(state["predicted"], _flat(state, "prediction")),
        join=model.join,
        step_prediction=model.step_prediction,
        blank_id=model.blank_id,
    )
    return {
        "text": _spell(pieces, hypotheses.labels),
        "labels": hypotheses.labels[:, : tf.reduce_max(hypotheses.num_labels)],
        "num_labels": hypotheses.num_labels,
        **_state(state["pending"], encoder_state, search),
    }


def _take_features(samples: tf.Tensor, chunk: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Features of all whole chunks in `samples`, [B, 4n, F], and the samples that later ones still need."""
    unit = chunk * REDUCTION
    num_features = num_log_mel_frames(tf.shape(samples)[1]) // unit * unit
    consumed = num_features * FRAME_STEP
    heard = consumed + tf.where(
        num_features > 0, FRAME_LENGTH - FRAME_STEP, 0
    )  # the last window reaches beyond its step
    return log_mel(samples[:, :heard]), samples[:, consumed:]


def _initial_state(model: Transducer, batch_size: int | tf.Tensor) -> State:
    search = SearchState(*model.initial_prediction(batch_size))
    return _state(tf.zeros([batch_size, 0]), model.initial_encoder_state(batch_size), search)


def _state(pending: tf.Tensor, encoder_state: Sequence[tf.Tensor], search: SearchState) -> State:
    named = {"pending": pending, "predicted": search.predicted}
    named.update({f"encoder_{i}": tensor for i, tensor in enumerate(encoder_state)})
    named.update({f"prediction_{i}": tensor for i, tensor in enumerate(search.state)})
    return named


def _flat(state: State, prefix: str) -> tuple[tf.Tensor, ...]:
    return tuple(state[f"{prefix}_{i}"] for i in range(sum(name.startswith(prefix + "_") for name in state)))


def _spell(pieces: Sequence[str], labels: tf.Tensor) -> tf.Tensor:
    """Text of each row, [B, L] -> [B]; what lies beyond a row's length is blank, whose piece is empty."""
    return tf.strings.reduce_join(tf.gather(tf.constant(list(pieces)), labels), axis=1)
