"""A causal transducer as functions of plain tensors that hear audio bit by bit.

All state is explicit: a server keeps one dictionary of tensors for each session, in any process, or for a batch of
sessions, in which each row begins, pauses and ends when it likes.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_rnnt_kd.decoding.hypotheses import Hypotheses
from tf_rnnt_kd.decoding.streaming import SearchState, search_chunk, where_rows
from tf_rnnt_kd.features.log_mel import FRAME_LENGTH, FRAME_STEP, log_mel, num_log_mel_frames
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.serving import rows
from tf_rnnt_kd.serving.offline_module import AUDIO, OfflineModule, Outputs, describe

SAMPLES_PER_FRAME = FRAME_STEP * REDUCTION
OVERLAP = FRAME_LENGTH - FRAME_STEP  # the last window of an encoder frame reaches so far beyond it

State = dict[str, tf.Tensor]


class StreamingModule(OfflineModule):
    """Whole utterances, and streams that give the same text chunk by chunk.

    Args:
      model: a causal transducer.
      pieces: text of each label, with a space where a word begins; that of blank is empty.
      beam: hypotheses of `nbest`.
    """

    def __init__(self, model: Transducer, pieces: Sequence[str], *, beam: int = 8):
        super().__init__(model, pieces, beam=beam)
        self._state_spec = {
            name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name)
            for name, tensor in _initial_state(model, 1).items()
        }

        bits = tf.TensorSpec([None], tf.bool)
        self._sessions_spec = {**AUDIO, "reset": bits, "flush": bits, **self._state_spec}

        def run(inputs, num_samples, reset=None, flush=None):
            state = {name: inputs[name] for name in self._state_spec}
            outputs = _step(model, pieces, inputs["samples"], num_samples, state, reset, flush)
            for name, spec in self._state_spec.items():
                outputs[name].set_shape(spec.shape)
            return outputs

        def step_sessions(**inputs):
            inputs = self._fit(inputs, self._sessions_spec)
            return run(inputs, inputs["num_samples"], inputs["reset"], inputs["flush"])

        def step(**inputs):
            inputs = self._fit(inputs, {"samples": AUDIO["samples"], **self._state_spec})
            batch_size, num_samples = tf.unstack(tf.shape(inputs["samples"]))
            return run(inputs, tf.fill([batch_size], num_samples))

        def flush(**state):
            state = self._fit(state, self._state_spec)
            nothing = tf.zeros_like(state["num_pending"])
            yes = tf.equal(nothing, 0)
            samples = tf.zeros([tf.shape(nothing)[0], 0])
            return self.step_sessions(samples=samples, num_samples=nothing, reset=~yes, flush=yes, **state)

        self.step_sessions = tf.function(step_sessions, autograph=False)
        self.step = tf.function(step, autograph=False)
        self.flush = tf.function(flush, autograph=False)
        self.initial_state = tf.function(lambda: _initial_state(model, 1), input_signature=[], autograph=False)

    def _fit(self, inputs, spec):
        return rows.fit_together({name: inputs[name] for name in spec}, spec)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Those of `OfflineModule`, and those of a stream of B sessions.

        `initial_state() -> state` of one session; every tensor has the batch first: repeat it for B sessions;
        `step(samples [B, n], **state)`: `text` [B] that these samples added, with `labels`, `frames`, `label_log_probs`
        [B, L], `num_labels`, `scores` and `error` [B] as in `transcribe` (frames counted from the start of the
        session), and the next state under the names of the old; for any n, also 0. Text comes when a chunk of the
        encoder is full;
        `flush(**state)`: the same at the end of the audio, with the text of a last chunk that is not full and the state
        of a new session. Samples that do not fill an encoder frame have no text (offline search drops them too);
        `step_sessions(samples [B, n], num_samples [B], reset [B], flush [B], **state)`: the same for sessions that do
        not keep pace. Of row b the first `num_samples[b]` samples are heard, 0 to n. A row that is `reset` forgets its
        session first; one that is flushed ends its session after these samples.

        A row has an `error`, adds no text and begins anew if its samples are not finite or reach beyond `rows.LOUDEST`,
        or if anything that is made of them is not finite; what it said before stands, and no other row notices. Tensors
        of other shapes, or of unequal batch sizes, are refused (`InvalidArgumentError`).
        """
        samples = AUDIO["samples"]
        return {
            **super().signatures(),
            "initial_state": self.initial_state.get_concrete_function(),
            "step_sessions": self.step_sessions.get_concrete_function(**self._sessions_spec),
            "step": self.step.get_concrete_function(samples=samples, **self._state_spec),
            "flush": self.flush.get_concrete_function(**self._state_spec),
        }


def hear(
    model: Transducer, features: tf.Tensor, num_frames: tf.Tensor, state: State
) -> tuple[Hypotheses, dict[str, tf.Tensor]]:
    """Encoder and search of the next frames of each row.

    Args:
      model: a causal transducer.
      features: [B, 4n, F], finite.
      num_frames: [B] int32, 0 to n.
      state: of network and search, as `network_state` names it; other names are left out of the result.

    Returns:
      The hypotheses of these frames, counted from the first of them, and the next state.
    """
    encoded, encoder_state = model.stream(features, _flat(state, "encoder"), num_frames)  # [B, n, D]
    hypotheses, search = search_chunk(
        encoded,
        num_frames,
        SearchState(state["predicted"], _flat(state, "prediction")),
        join=model.join,
        step_prediction=model.step_prediction,
        blank_id=model.blank_id,
    )
    return hypotheses, _network_state(encoder_state, search)


def initial_network_state(model: Transducer, batch_size: int | tf.Tensor) -> State:
    """The state that `hear` carries, before any sample."""
    return _network_state(model.initial_encoder_state(batch_size), SearchState(*model.initial_prediction(batch_size)))


def _network_state(encoder_state: Sequence[tf.Tensor], search: SearchState) -> State:
    named = {"predicted": search.predicted}
    named.update({f"encoder_{i}": tensor for i, tensor in enumerate(encoder_state)})
    named.update({f"prediction_{i}": tensor for i, tensor in enumerate(search.state)})
    return named


def _flat(state: State, prefix: str) -> tuple[tf.Tensor, ...]:
    return tuple(state[f"{prefix}_{i}"] for i in range(sum(name.startswith(prefix + "_") for name in state)))


def _initial_state(model: Transducer, batch_size: int | tf.Tensor) -> State:
    """That of the network, and the last samples heard, of which `num_pending` are still without text."""
    recent = tf.zeros([batch_size, model.encoder.chunk * SAMPLES_PER_FRAME + OVERLAP - 1])
    zeros = tf.zeros([batch_size], tf.int32)
    return {"recent": recent, "num_pending": zeros, "frame": zeros, **initial_network_state(model, batch_size)}


def _step(
    model: Transducer,
    pieces: Sequence[str],
    samples: tf.Tensor,
    num_samples: tf.Tensor,
    state: State,
    reset: tf.Tensor | None = None,
    flush: tf.Tensor | None = None,
) -> Outputs:
    """One step of B sessions; None where no row is reset spares a choice for each tensor of the state."""
    state = state if reset is None else _begin_anew(model, reset, state)
    error = _find_errors(samples, num_samples, state)  # [B]
    num_samples, num_pending = (tf.where(error == "", n, 0) for n in (num_samples, state["num_pending"]))
    audio = tf.concat([state["recent"], samples], axis=1)
    start = tf.shape(state["recent"])[1] - num_pending  # [B], of what has no text yet
    stop = tf.shape(state["recent"])[1] + num_samples
    num_frames = num_log_mel_frames(stop - start) // REDUCTION
    whole_chunks = num_frames // model.encoder.chunk * model.encoder.chunk
    num_frames = whole_chunks if flush is None else tf.where(flush, num_frames, whole_chunks)
    features = log_mel(_cut(audio, start, stop, tf.reduce_max(num_frames)))
    hypotheses, after = hear(model, features, num_frames, state)
    real = tf.range(tf.shape(hypotheses.labels)[1]) < hypotheses.num_labels[:, None]
    hypotheses = hypotheses._replace(frames=tf.where(real, hypotheses.frames + state["frame"][:, None], 0))
    after["recent"] = tf.gather(audio, num_samples[:, None] + tf.range(tf.shape(state["recent"])[1]), batch_dims=1)
    after["num_pending"] = stop - start - num_frames * SAMPLES_PER_FRAME
    after["frame"] = state["frame"] + num_frames
    # Of the state before, too: an infinity may end in a gate or a softmax and leave nothing but a wrong text.
    finite = rows.are_finite([*state.values(), features, hypotheses.scores, *after.values()])
    error = tf.where(finite | (error != ""), error, rows.LOST)
    failed = error != ""
    after = _begin_anew(model, failed if flush is None else flush | failed, after)
    return {**describe(pieces, rows.silence(hypotheses, failed)), "error": error, **after}


def _find_errors(samples: tf.Tensor, num_samples: tf.Tensor, state: State) -> tf.Tensor:
    """What is wrong with each row before it is heard, [B] string: its samples, or counts that no step could leave."""
    pending = state["num_pending"]
    follows = (pending >= 0) & (pending <= tf.shape(state["recent"])[1]) & (state["frame"] == state["encoder_0"])
    error = rows.find_errors(samples, num_samples)
    return tf.where((error == "") & ~follows, rows.FOREIGN, error)


def _begin_anew(model: Transducer, rows: tf.Tensor, state: State) -> State:
    """The state with a new session in the rows, [B] bool, where it is asked for; nothing is copied where none is."""

    def reset() -> State:
        return where_rows(rows, _initial_state(model, tf.shape(rows)[0]), state)

    return tf.cond(tf.reduce_any(rows), reset, lambda: tf.nest.map_structure(tf.identity, state))


def _cut(audio: tf.Tensor, start: tf.Tensor, stop: tf.Tensor, num_frames: tf.Tensor) -> tf.Tensor:
    """The samples of n frames from each row's start, [B, 640 n + 240], zeros from its stop on; [B, 0] for n = 0."""
    size = num_frames * SAMPLES_PER_FRAME + tf.where(num_frames > 0, OVERLAP, 0)
    index = start[:, None] + tf.range(size)
    inside = index < stop[:, None]
    return tf.where(inside, tf.gather(audio, tf.where(inside, index, 0), batch_dims=1), 0.0)
