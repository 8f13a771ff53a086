"""What beam searches share: K hypotheses an utterance, their arcs, recombination, the best of what comes of it."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.decoding.backpointers import NO_LABEL, Backpointers, no_backpointers, trace, write_turn
from tf_rnnt_kd.decoding.fusion import LabelScorer, with_scorer
from tf_rnnt_kd.decoding.hypotheses import NBest
from tf_rnnt_kd.decoding.largest import top_k_of_many
from tf_rnnt_kd.decoding.predictions import step_rows, take_rows
from tf_rnnt_kd.decoding.streaming import Join, SearchState, StepPrediction, with_shape_of

_MULTIPLIER = -7046029254386353131  # odd; 2^64 / golden ratio


class Beam(NamedTuple):
    """The K hypotheses of each utterance, best first; all fields [B, K]."""

    scores: tf.Tensor  # -inf for none
    frame: tf.Tensor  # the next to hear
    num_symbols: tf.Tensor  # labels emitted on that frame
    num_labels: tf.Tensor
    hashes: tf.Tensor  # int64: two label sequences are the same if these are
    node: tf.Tensor  # of the last label in `Backpointers`


class _Candidates(NamedTuple):
    """What the hypotheses of an utterance may become, [B, C]: each as it is or after a blank, and the best labels."""

    scores: tf.Tensor
    frame: tf.Tensor
    parent: tf.Tensor
    label: tf.Tensor  # -1 for none
    hashes: tf.Tensor


# Which of the hypotheses take an arc this turn: (alive and not at the end [B, K], frame [B, K]) -> [B, K].
Moves = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def search_lattice(
    encoded: tf.Tensor,
    num_frames: tf.Tensor,
    moves: Moves,
    *,
    join: Join,
    initial_prediction: Callable[[tf.Tensor], tuple[tf.Tensor, tuple[tf.Tensor, ...]]],
    step_prediction: StepPrediction,
    beam: int,
    blank_id: int,
    max_symbols_per_frame: int,
    max_labels: int | None,
    max_gap: float,
    label_scorer: LabelScorer | None,
) -> NBest:
    """The search that `moves` makes synchronous to something; the rest as in `beam_search`.

    A turn lets every hypothesis that moves take a blank or one of its best labels, those that do not stay as they are,
    and the K best of all that comes of it go on. It ends when all have heard their last frame.
    """
    if label_scorer is not None:
        initial_prediction, step_prediction = with_scorer(initial_prediction, step_prediction, label_scorer)
    num_frames = tf.cast(num_frames, tf.int32)[:, None]
    batch_size, longest = tf.shape(encoded)[0], tf.shape(encoded)[1]
    capacity = longest * max_symbols_per_frame if max_labels is None else tf.constant(max_labels, tf.int32)
    first_row = tf.range(batch_size)[:, None] * beam

    def alive(hypotheses: Beam) -> tf.Tensor:
        return tf.math.is_finite(hypotheses.scores) & (hypotheses.frame < num_frames)

    def unfinished(turn: tf.Tensor, hypotheses: Beam, *_: object) -> tf.Tensor:
        return tf.reduce_any(alive(hypotheses))

    def advance(turn: tf.Tensor, hypotheses: Beam, search: SearchState, pointers: Backpointers) -> tuple:
        moving = moves(alive(hypotheses), hypotheses.frame)  # [B, K]
        may_emit = moving & (hypotheses.num_symbols < max_symbols_per_frame) & (hypotheses.num_labels < capacity)
        log_probs = _log_probs(encoded, hypotheses.frame, moving, search.predicted, join)  # [B, K, V]
        bonus = None if label_scorer is None else tf.reshape(search.state[1][0], [batch_size, beam, -1])
        candidates = _extend(hypotheses, log_probs, bonus, moving, may_emit, blank_id)
        chosen = _choose(candidates, beam, max_gap)
        after, nodes = _follow(hypotheses, chosen, log_probs, turn)
        moved = _predict(hypotheses, chosen, search, first_row, step_prediction)
        result = turn + 1, after, moved, write_turn(pointers, turn, nodes)
        return tf.nest.map_structure(with_shape_of, result, (turn, hypotheses, search, pointers))

    search = SearchState(*initial_prediction(batch_size * beam))
    pointers = no_backpointers(longest * (max_symbols_per_frame + 1) + 1, batch_size, beam)
    start = tf.constant(0), _start(batch_size, beam), SearchState(search.predicted, tuple(search.state)), pointers
    _, found, _, pointers = tf.while_loop(unfinished, advance, start)
    real = tf.math.is_finite(found.scores)
    num_labels = tf.where(real, found.num_labels, 0)
    path = trace(pointers, tf.where(real, found.node, NO_LABEL), num_labels, capacity)
    return NBest(path.label, num_labels, found.scores, path.frame, path.label_log_prob)


def _log_probs(encoded: tf.Tensor, frame: tf.Tensor, moving: tf.Tensor, predicted: tf.Tensor, join: Join) -> tf.Tensor:
    """[B, K, V] float32; those that do not move hear zeros, so padding is never read."""
    vectors = tf.gather(encoded, tf.where(moving, frame, 0), batch_dims=1)  # [B, K, D]
    vectors = tf.where(moving[:, :, None], vectors, tf.zeros([], vectors.dtype))
    vectors = tf.reshape(vectors, [1, -1, vectors.shape[2]])
    logits = join(vectors, predicted[None])[0]  # [B K, V]: a product of matrices
    log_probs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    return tf.reshape(log_probs, [-1, frame.shape[1], log_probs.shape[1]])


def _extend(
    hypotheses: Beam,
    log_probs: tf.Tensor,
    bonus: tf.Tensor | None,
    moving: tf.Tensor,
    may_emit: tf.Tensor,
    blank_id: int,
) -> _Candidates:
    """Each hypothesis as it is, or after a blank if it moves; and the K best of all labels after all hypotheses."""
    _, beam, vocabulary = log_probs.shape
    stayed = hypotheses.scores + tf.where(moving, log_probs[:, :, blank_id], 0.0)  # [B, K]
    allowed = may_emit[:, :, None] & (tf.range(vocabulary) != blank_id)  # [B, K, V]
    gains = log_probs if bonus is None else log_probs + bonus
    emitted = tf.where(allowed, hypotheses.scores[:, :, None] + gains, float("-inf"))
    best, index = top_k_of_many(tf.reshape(emitted, [-1, beam * vocabulary]), beam)  # [B, K]
    frame, hashes = hypotheses.frame, hypotheses.hashes
    label, parent = index % vocabulary, index // vocabulary
    places = tf.zeros_like(parent) + tf.range(beam)
    frames = tf.gather(frame, parent, batch_dims=1)
    extended = _hash(tf.gather(hashes, parent, batch_dims=1), label)
    return _Candidates(
        scores=tf.concat([stayed, best], axis=1),
        frame=tf.concat([frame + tf.cast(moving, tf.int32), frames], axis=1),
        parent=tf.concat([places, parent], axis=1),
        label=tf.concat([tf.fill(tf.shape(label), NO_LABEL), label], axis=1),
        hashes=tf.concat([hashes, extended], axis=1),
    )


def _hash(hashes: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Multiplied and folded: 63 bits, and no pattern of labels makes two histories meet."""
    hashes = tf.bitwise.bitwise_xor(hashes, tf.cast(label, tf.int64) + 1) * tf.constant(_MULTIPLIER, tf.int64)
    return tf.bitwise.bitwise_xor(hashes, tf.bitwise.right_shift(hashes, tf.constant(29, tf.int64)))


def _choose(candidates: _Candidates, beam: int, max_gap: float) -> _Candidates:
    """The K best after recombination."""
    same = candidates.hashes[:, :, None] == candidates.hashes[:, None]  # [B, C, C]
    same &= candidates.frame[:, :, None] == candidates.frame[:, None]
    rivals = tf.where(same, candidates.scores[:, None], float("-inf"))  # [B, C, C]
    # Of equal ones the heaviest stands for all, of equally heavy ones the first.
    heaviest = tf.argmax(rivals, axis=2, output_type=tf.int32)  # [B, C]
    stands = (heaviest == tf.range(2 * beam)) & tf.math.is_finite(candidates.scores)
    peak = tf.reduce_max(rivals, axis=2, keepdims=True)
    total = peak[:, :, 0] + tf.math.log(tf.reduce_sum(tf.exp(rivals - peak), axis=2))  # [B, C]
    total = tf.where(stands, total, float("-inf"))
    best, index = tf.math.top_k(total, beam)  # [B, K]
    best = tf.where(best < best[:, :1] - max_gap, float("-inf"), best)
    return _Candidates(best, *(tf.gather(values, index, batch_dims=1) for values in candidates[1:]))


def _follow(hypotheses: Beam, chosen: _Candidates, log_probs: tf.Tensor, turn: tf.Tensor) -> tuple[Beam, Backpointers]:
    """The hypotheses after their arcs, and the nodes of those that emit."""
    _, beam, vocabulary = log_probs.shape
    emits = chosen.label != NO_LABEL  # [B, K]
    emitted = tf.cast(emits, tf.int32)
    arc = chosen.parent * vocabulary + tf.maximum(chosen.label, 0)
    label_log_prob = tf.gather(tf.reshape(log_probs, [-1, beam * vocabulary]), arc, batch_dims=1)
    frame, num_symbols, num_labels, node = (
        tf.gather(values, chosen.parent, batch_dims=1)
        for values in (hypotheses.frame, hypotheses.num_symbols, hypotheses.num_labels, hypotheses.node)
    )
    after = Beam(
        scores=chosen.scores,
        frame=chosen.frame,
        num_symbols=tf.where(chosen.frame == frame, num_symbols + emitted, 0),
        num_labels=num_labels + emitted,
        hashes=chosen.hashes,
        node=tf.where(emits, turn * beam + tf.range(beam), node),
    )
    return after, Backpointers(node, chosen.label, chosen.frame, label_log_prob)


def _predict(
    hypotheses: Beam, chosen: _Candidates, search: SearchState, first_row: tf.Tensor, step_prediction: StepPrediction
) -> SearchState:
    """The prediction network's states after the chosen labels; a label sequence already in the beam has its own."""
    same = chosen.hashes[:, :, None] == hypotheses.hashes[:, None]  # [B, K, K]
    same &= tf.math.is_finite(hypotheses.scores)[:, None]
    known = tf.reduce_any(same, axis=2)
    source = tf.where(known, tf.argmax(same, axis=2, output_type=tf.int32), chosen.parent) + first_row
    steps = tf.math.is_finite(chosen.scores) & ~known
    search = take_rows(tf.reshape(source, [-1]), search)
    return step_rows(tf.reshape(steps, [-1]), tf.reshape(tf.maximum(chosen.label, 0), [-1]), search, step_prediction)


def _start(batch_size: tf.Tensor, beam: int) -> Beam:
    scores = tf.concat([tf.zeros([batch_size, 1]), tf.fill([batch_size, beam - 1], float("-inf"))], axis=1)
    zeros = tf.zeros([batch_size, beam], tf.int32)
    return Beam(
        scores, zeros, zeros, zeros, tf.zeros([batch_size, beam], tf.int64), tf.fill([batch_size, beam], NO_LABEL)
    )
