"""Beam search over a transducer lattice, for a whole batch, with static shapes."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.decoding.fusion import LabelScorer, with_scorer
from tf_rnnt_kd.decoding.hypotheses import NBest
from tf_rnnt_kd.decoding.streaming import Join, SearchState, StepPrediction, predict_where, where_rows, with_shape_of

# Two label sequences are the same if these two hashes are. Odd multipliers, arithmetic modulo 2^64.
_MULTIPLIERS = (6364136223846793005, 2862933555777941757)


class _Beam(NamedTuple):
    """The K hypotheses of each utterance, best first; `done` ones have left the utterance's frame by a blank."""

    scores: tf.Tensor  # [B, K], -inf for none
    done: tf.Tensor  # [B, K] bool
    num_symbols: tf.Tensor  # [B, K], labels emitted on this frame
    hashes: tf.Tensor  # [B, K, 2] int64, of the labels
    num_labels: tf.Tensor  # [B, K]
    labels: tf.Tensor  # [B, K, L + 1]; the last column takes the writes of hypotheses that do not emit
    frames: tf.Tensor  # [B, K, L + 1]
    label_log_probs: tf.Tensor  # [B, K, L + 1]


class _Candidates(NamedTuple):
    """What the hypotheses of an utterance may become, [B, C]."""

    scores: tf.Tensor
    done: tf.Tensor
    parent: tf.Tensor
    label: tf.Tensor  # -1 for none


def beam_search(
    encoded: tf.Tensor,
    num_frames: tf.Tensor,
    *,
    join: Join,
    initial_prediction: Callable[[tf.Tensor], tuple[tf.Tensor, tuple[tf.Tensor, ...]]],
    step_prediction: StepPrediction,
    beam: int = 8,
    blank_id: int = 0,
    max_symbols_per_frame: int = 4,
    max_labels: int | None = None,
    max_gap: float = 12.0,
    label_scorer: LabelScorer | None = None,
) -> NBest:
    """The label sequences whose alignments weigh most, among those that a beam of K sees.

    Time-synchronous: all hypotheses of an utterance leave a frame together. Within a frame each may emit labels; its
    extensions, and those that have left the frame by a blank, compete for the same K places, so a beam of 1 is
    `greedy_search`. Hypotheses of equal labels are recombined: their scores are added as probabilities, the emission
    frames are those of the heavier. Utterances do not wait for each other's frames. Costs K joint nodes and K steps of
    the prediction network a turn, one to `max_symbols_per_frame` + 1 turns a frame.

    Args:
      encoded: [B, T, D] floating, encoder frames as they enter the joint; T may be 0.
      num_frames: [B] integer; what lies beyond may hold anything.
      join: (encoded [B, N, D], predicted [B, 1, D]) -> logits [B, N, V].
      initial_prediction: batch size -> (predicted [B, D], state), state a flat tuple of [B, ...] tensors.
      step_prediction: (label [B] int32, state) -> (predicted [B, D], state).
      beam: K.
      blank_id: index of blank.
      max_symbols_per_frame: labels a frame may emit; then only blank may follow.
      max_labels: L of the result; None for T * max_symbols_per_frame.
      max_gap: in nats; hypotheses that are so far behind the best are given up.
      label_scorer: what is added to the score of each label, e.g. `fusion.weighted_sum` of language models.

    Returns:
      `NBest`, best first.

    References:
      Graves 2012 (1211.3711), section 2.5; recombination and the cap on symbols as in later time-synchronous searches.
    """
    num_frames = tf.cast(num_frames, tf.int32)
    batch_size, longest = tf.shape(encoded)[0], tf.shape(encoded)[1]
    capacity = longest * max_symbols_per_frame if max_labels is None else tf.constant(max_labels, tf.int32)
    if label_scorer is not None:
        initial_prediction, step_prediction = with_scorer(initial_prediction, step_prediction, label_scorer)
    predicted, state = initial_prediction(batch_size)
    search = SearchState(*tf.nest.map_structure(lambda x: tf.repeat(x, beam, axis=0), (predicted, tuple(state))))

    def unfinished(frame: tf.Tensor, *_: object) -> tf.Tensor:
        return tf.reduce_any(frame < num_frames)

    def advance(frame: tf.Tensor, hypotheses: _Beam, search: SearchState) -> tuple[tf.Tensor, _Beam, SearchState]:
        valid = frame < num_frames  # [B]
        vectors = tf.gather(encoded, tf.where(valid, frame, 0), batch_dims=1)  # [B, D]
        logits = join(tf.repeat(vectors, beam, axis=0)[:, None], search.predicted[:, None])[:, 0]
        log_probs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        log_probs = tf.reshape(log_probs, [batch_size, beam, -1])  # [B, K, V]
        bonus = 0.0 if label_scorer is None else tf.reshape(search.state[1][0], [batch_size, beam, -1])
        exhausted = (hypotheses.num_symbols >= max_symbols_per_frame) | (hypotheses.num_labels >= capacity)
        candidates = _candidates(hypotheses, log_probs, bonus, exhausted, blank_id)
        chosen, kept = _choose(hypotheses, candidates, beam, max_gap)
        after = _follow(hypotheses, chosen, kept, frame, log_probs, capacity)
        moved = _predict(search, chosen, step_prediction)
        # An utterance whose hypotheses are all done goes on to its next frame.
        leaves = valid & tf.reduce_all(after.done, axis=1)  # [B]
        after = after._replace(
            done=after.done & ~leaves[:, None], num_symbols=tf.where(leaves[:, None], 0, after.num_symbols)
        )
        # One that has come to its end stays as it was.
        after = where_rows(valid, after, hypotheses)
        moved = where_rows(tf.repeat(valid, beam), moved, search)
        result = frame + tf.cast(leaves, tf.int32), after, moved
        return tf.nest.map_structure(with_shape_of, result, (frame, hypotheses, search))

    start = tf.zeros([batch_size], tf.int32), _start(batch_size, beam, capacity), search
    _, found, _ = tf.while_loop(unfinished, advance, start)
    real = tf.math.is_finite(found.scores)
    return NBest(
        labels=tf.where(real[:, :, None], found.labels[:, :, :-1], 0),
        num_labels=tf.where(real, found.num_labels, 0),
        scores=found.scores,
        frames=tf.where(real[:, :, None], found.frames[:, :, :-1], 0),
        label_log_probs=tf.where(real[:, :, None], found.label_log_probs[:, :, :-1], 0.0),
    )


def _candidates(
    hypotheses: _Beam, log_probs: tf.Tensor, bonus: tf.Tensor | float, exhausted: tf.Tensor, blank_id: int
) -> _Candidates:
    """Each hypothesis as it is, if done, or after a blank; and the K best of all labels after all hypotheses."""
    batch_size, beam, vocabulary = tf.unstack(tf.shape(log_probs))
    scores, done = hypotheses.scores, hypotheses.done
    stayed = tf.where(done, scores, scores + log_probs[:, :, blank_id])  # [B, K]
    may_emit = ~(done | exhausted)[:, :, None] & (tf.range(vocabulary) != blank_id)  # [B, K, V]
    emitted = tf.where(may_emit, scores[:, :, None] + log_probs + bonus, float("-inf"))
    best, index = tf.math.top_k(tf.reshape(emitted, [batch_size, -1]), scores.shape[1])  # [B, K]
    places = tf.broadcast_to(tf.range(beam), tf.shape(stayed))
    return _Candidates(
        scores=tf.concat([stayed, best], axis=1),
        done=tf.concat([tf.ones_like(done), tf.zeros_like(done)], axis=1),
        parent=tf.concat([places, index // vocabulary], axis=1),
        label=tf.concat([-tf.ones_like(places), index % vocabulary], axis=1),
    )


def _choose(hypotheses: _Beam, candidates: _Candidates, beam: int, max_gap: float) -> tuple[_Candidates, tf.Tensor]:
    """The K best after recombination, and their hashes [B, K, 2]."""
    hashes = tf.gather(hypotheses.hashes, candidates.parent, batch_dims=1)  # [B, C, 2]
    label = tf.cast(candidates.label, tf.int64)[:, :, None]
    hashes = tf.where(label >= 0, hashes * tf.constant(_MULTIPLIERS, tf.int64) + label + 1, hashes)
    same = tf.reduce_all(hashes[:, :, None] == hashes[:, None], axis=3)  # [B, C, C]
    same &= candidates.done[:, :, None] == candidates.done[:, None]
    scores = candidates.scores
    together = tf.reduce_logsumexp(tf.where(same, scores[:, None], float("-inf")), axis=2)  # [B, C]
    # Of equal ones the heaviest stands for all, of equally heavy ones the first.
    place = tf.range(tf.shape(scores)[1])
    ahead = scores[:, None] > scores[:, :, None]
    ahead |= (scores[:, None] == scores[:, :, None]) & (place < place[:, None])
    hidden = tf.reduce_any(same & ahead, axis=2)  # [B, C]
    together = tf.where(hidden, float("-inf"), together)
    together = tf.where(together < tf.reduce_max(together, axis=1, keepdims=True) - max_gap, float("-inf"), together)
    best, index = tf.math.top_k(together, beam)  # [B, K]
    done, parent, label = (tf.gather(values, index, batch_dims=1) for values in candidates[1:])
    done |= tf.math.is_inf(best)  # no one waits for what is given up
    return _Candidates(best, done, parent, label), tf.gather(hashes, index, batch_dims=1)


def _follow(
    hypotheses: _Beam,
    chosen: _Candidates,
    hashes: tf.Tensor,
    frame: tf.Tensor,
    log_probs: tf.Tensor,
    capacity: tf.Tensor,
) -> _Beam:
    parents = tf.nest.map_structure(lambda values: tf.gather(values, chosen.parent, batch_dims=1), hypotheses)
    emits = (chosen.label >= 0) & tf.math.is_finite(chosen.scores)  # [B, K]
    here = tf.range(tf.shape(parents.labels)[2]) == tf.where(emits, parents.num_labels, capacity)[:, :, None]
    emitted = tf.cast(emits, tf.int32)
    label = tf.maximum(chosen.label, 0)
    label_log_prob = tf.gather_nd(log_probs, tf.stack([chosen.parent, label], 2), batch_dims=1)  # [B, K]
    return _Beam(
        scores=chosen.scores,
        done=chosen.done,
        num_symbols=parents.num_symbols + emitted,
        hashes=hashes,
        num_labels=parents.num_labels + emitted,
        labels=tf.where(here, label[:, :, None], parents.labels),
        frames=tf.where(here, frame[:, None, None], parents.frames),
        label_log_probs=tf.where(here, label_log_prob[:, :, None], parents.label_log_probs),
    )


def _predict(search: SearchState, chosen: _Candidates, step_prediction: StepPrediction) -> SearchState:
    batch_size, beam = tf.unstack(tf.shape(chosen.parent))
    parent = tf.reshape(chosen.parent + tf.range(batch_size)[:, None] * beam, [-1])  # [B K]
    label = tf.reshape(chosen.label, [-1])
    search = tf.nest.map_structure(lambda values: tf.gather(values, parent), search)
    return predict_where(label >= 0, tf.maximum(label, 0), search, step_prediction)


def _start(batch_size: tf.Tensor, beam: int, capacity: tf.Tensor) -> _Beam:
    scores = tf.concat([tf.zeros([batch_size, 1]), tf.fill([batch_size, beam - 1], float("-inf"))], axis=1)
    zeros = tf.zeros([batch_size, beam], tf.int32)
    empty = tf.zeros([batch_size, beam, capacity + 1], tf.int32)
    hashes = tf.zeros([batch_size, beam, len(_MULTIPLIERS)], tf.int64)
    return _Beam(scores, tf.math.is_inf(scores), zeros, hashes, zeros, empty, empty, tf.cast(empty, tf.float32))
