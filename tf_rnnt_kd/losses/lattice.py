"""Sums and maxima over the alignments of a transducer lattice, by one recursion over its anti-diagonals.

A node (t, u) has two arcs: blank, to (t+1, u), and the next label, to (t, u+1). Every alignment leaves diagonal
n = t + u for diagonal n + 1 by exactly one arc. So all nodes of a diagonal advance together (T+U steps over [B, U+1]
vectors), and a constant taken from every arc of a diagonal shifts all alignments alike. The second fact keeps float32
exact enough for long utterances: scores inside the recursion stay near 0, the constants (`scale`) are added once.

Inside, "no arc" is `LOG_ZERO`, finite so that no difference of two infinities can become NaN. Infinities appear in
results only.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.masks import length_mask

LOG_ZERO = -1e30

# A mean cost above this has paid for an impossible arc (`_limited`): 1e30 times a share of the alignments above 1e-18.
_INFINITE = 1e12


class Diagonals(NamedTuple):
    """The two arcs of each node, laid out for the recursion: row n holds the nodes t = n - u, N = T+U.

    Attributes:
      blank: [N, B, U+1] float32, relative to `scale`.
      label: [N, B, U+1] float32, the arc that leaves column u, relative to `scale`.
      scale: [N, B] float32, what was taken from both.
      num_frames: [B] int32.
      num_labels: [B] int32.
    """

    blank: tf.Tensor
    label: tf.Tensor
    scale: tf.Tensor
    num_frames: tf.Tensor
    num_labels: tf.Tensor


class ForwardPass(NamedTuple):
    """A lattice summed from its start.

    Attributes:
      diagonals: the arcs.
      log_alpha: [N+1, B, U+1] float32, relative to the scales of the diagonals before.
      log_likelihood: [B] float32, -inf where no alignment exists.
    """

    diagonals: Diagonals
    log_alpha: tf.Tensor
    log_likelihood: tf.Tensor


def node_mask(num_frames: tf.Tensor, num_labels: tf.Tensor, max_frames: int, max_labels: int) -> tf.Tensor:
    """`mask[b, t, u] = t < num_frames[b] and u <= num_labels[b]`: [B, T, U+1] bool."""
    frames = length_mask(num_frames, max_frames)  # [B, T]
    columns = length_mask(num_labels + 1, max_labels + 1)  # [B, U+1]
    return frames[:, :, None] & columns[:, None, :]  # [B, T, U+1]


def sum_alignments(
    log_blank: tf.Tensor, log_label: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor
) -> ForwardPass:
    """Adds the weights of all alignments.

    `alpha(t, u) = alpha(t-1, u) blank(t-1, u) + alpha(t, u-1) label(t, u-1)`, read behind the blank of the last node.
    An utterance of no frames and no labels has one alignment, the empty one, of weight 1: filler rows cost nothing.
    Memory O(B T U).

    Args:
      log_blank: [B, T, U+1] floating, log weight of each node's blank arc; what lies beyond the lengths is not read.
      log_label: [B, T, U] floating, log weight of each node's label arc.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.

    Returns:
      `ForwardPass`; no gradient flows through it (`arc_posteriors` is the gradient).

    References:
      Graves 2012, https://arxiv.org/abs/1211.3711, eq. 16; Bagby, Rao and Sim 2018 for the skewed layout.
    """
    diagonals = _lay_out(log_blank, log_label, num_frames, num_labels)
    log_alpha = _forward(diagonals, _add)
    return ForwardPass(diagonals, log_alpha, _total(diagonals, log_alpha))


def arc_posteriors(forward: ForwardPass) -> tuple[tf.Tensor, tf.Tensor]:
    """The probability that an alignment takes each arc.

    `exp(log_alpha(t, u) + arc + log_beta(head of the arc) - log_likelihood)`: the derivative of the log-likelihood by
    that arc. 0 in padding, and everywhere if no alignment exists. The two arcs of a node add up to the occupancy of the
    node, the nodes of a diagonal to 1. Costs one recursion more, and memory O(B T U).

    Args:
      forward: what `sum_alignments` returned.

    Returns:
      (blank [B, T, U+1], label [B, T, U]) float32.
    """
    return _posteriors(forward, _backward(forward.diagonals, _add))


class Occupancies(NamedTuple):
    """Who visits what in a lattice, 0 in padding.

    Attributes:
      node: [B, T, U+1] float32, the probability that an alignment visits the node: the sum of its arcs'.
      blank: [B, T, U+1] float32, as in `arc_posteriors`.
      label: [B, T, U] float32.
      log_likelihood: [B] float32, -inf where no alignment exists.
    """

    node: tf.Tensor
    blank: tf.Tensor
    label: tf.Tensor
    log_likelihood: tf.Tensor


def occupancies(
    log_blank: tf.Tensor, log_label: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor
) -> Occupancies:
    """`sum_alignments` and `arc_posteriors` for those who need both: the two recursions walk in one loop.

    Seen from its end a lattice is a lattice again, so the way back is a second batch of the way there. No gradient.

    Args:
      log_blank: [B, T, U+1] floating.
      log_label: [B, T, U] floating.
      num_frames: [B] integer.
      num_labels: [B] integer.
    """
    diagonals = _lay_out(log_blank, log_label, num_frames, num_labels)
    blank, label = diagonals.blank, diagonals.label
    stay = tf.concat([blank, tf.reverse(blank, [0, 2])], axis=1)  # [N, 2B, U+1]
    move = tf.concat([_shift_right(label), tf.reverse(label, [0, 2])], axis=1)  # [N, 2B, U+1]
    last = tf.shape(blank)[2] - 1 - diagonals.num_labels  # [B]
    walked = _advance(stay, move, tf.concat([tf.zeros_like(last), last], axis=0), _add, backward=False)
    log_alpha, log_beta = tf.split(walked, 2, axis=1)  # [N+1, B, U+1]
    forward = ForwardPass(diagonals, log_alpha, _total(diagonals, log_alpha))
    by_blank, by_label = _posteriors(forward, tf.reverse(log_beta, [0, 2]))
    node = by_blank + tf.pad(by_label, [[0, 0], [0, 0], [0, 1]])
    return Occupancies(node, by_blank, by_label, forward.log_likelihood)


def expected_cost(
    log_blank: tf.Tensor,
    log_label: tf.Tensor,
    blank_cost: tf.Tensor,
    label_cost: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
) -> tf.Tensor:
    """The mean, over the alignments, of a cost that each adds up along its arcs.

    `sum_pi p(pi) sum over arcs in pi of cost(arc)`, with p the weights of the alignments divided by their sum. The
    recursion carries the mean cost beside the log weight: with w the share of the alignments that come by the label,
    `mean(t, u) = (1 - w) (mean(t-1, u) + cost) + w (mean(t, u-1) + cost)`. That is the expectation semiring with its
    second component divided by the first, so costs of any sign need no logarithm. The gradient by a log weight is
    `posterior(arc) (E[cost | arc] - E[cost])`, that by a cost `posterior(arc)`. Memory O(B T U).

    Args:
      log_blank: [B, T, U+1] floating.
      log_label: [B, T, U] floating.
      blank_cost: [B, T, U+1] float32; infinite costs count if an alignment takes them.
      label_cost: [B, T, U] float32.
      num_frames: [B] integer.
      num_labels: [B] integer.

    Returns:
      [B] float32, in the unit of the costs; 0 where no alignment exists.

    References:
      Eisner 2002 for the semiring; entropy semiring, ICLR 2023, for its use on transducer lattices.
    """

    @tf.custom_gradient
    def mean(*tensors: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        diagonals = _lay_out(*tensors[:2], num_frames, num_labels)
        label_cost = tf.pad(tf.cast(tensors[3], tf.float32), [[0, 0], [0, 0], [0, 1]])
        mask = node_mask(num_frames, num_labels, tf.shape(label_cost)[1], tf.shape(label_cost)[2] - 1)
        # What walks on beyond its last frame pays nothing, whatever the padding holds.
        blank_cost = tf.where(mask, tf.cast(tensors[2], tf.float32), 0.0)
        blank_cost = _limited(_skew(blank_cost), diagonals.blank)  # [N, B, U+1]
        label_cost = _limited(_skew(label_cost), diagonals.label)
        moves = _shift_right(diagonals.label), _shift_right(label_cost, 0.0)
        first = tf.zeros_like(diagonals.num_labels)
        log_alpha, before = _advance_costs(diagonals.blank, moves[0], blank_cost, moves[1], first, backward=False)
        possible = tf.math.is_finite(_total(diagonals, log_alpha))  # [B]
        expected = tf.where(possible, _at_end(diagonals, before[-1]), 0.0)  # [B]

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            arcs = diagonals.blank, diagonals.label, blank_cost, label_cost
            log_beta, after = _advance_costs(*arcs, diagonals.num_labels, backward=True)
            scores = log_alpha[:-1] - _at_end(diagonals, log_alpha[-1])[None, :, None]  # [N, B, U+1]
            heads = (log_beta[1:], after[1:]), (_shift_left(log_beta[1:]), _shift_left(after[1:], 0.0))
            by_weight, by_cost = [], []
            for arc, cost, (rest, then) in zip(arcs[:2], arcs[2:], heads, strict=True):
                share = upstream[:, None] * tf.where(possible[:, None], tf.exp(scores + arc + rest), 0.0)
                by_cost.append(_unskew(share))
                by_weight.append(_unskew(share * (before[:-1] + cost + then - expected[:, None])))
            gradients = [tf.where(mask, values, 0.0) for values in (*by_weight, *by_cost)]
            return gradients[0], gradients[1][:, :, :-1], gradients[2], gradients[3][:, :, :-1]

        # What an impossible arc was made to cost shows only where an alignment cannot do without it.
        return tf.where(tf.abs(expected) < _INFINITE, expected, float("inf")), gradient

    return mean(log_blank, log_label, blank_cost, label_cost)


def best_path(
    log_blank: tf.Tensor, log_label: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The heaviest alignment: the same recursion with a maximum for the sum, then traced back.

    Of equal alignments the one that emits earliest is taken. Memory O(B T U).

    Args:
      log_blank: [B, T, U+1] floating.
      log_label: [B, T, U] floating.
      num_frames: [B] integer.
      num_labels: [B] integer.

    Returns:
      (frames [B, U] int32, the frame in which each label leaves, -1 in padding and where no alignment exists;
      score [B] float32, -inf there).
    """
    diagonals = _lay_out(log_blank, log_label, num_frames, num_labels)
    log_alpha = _forward(diagonals, tf.maximum)
    score = _total(diagonals, log_alpha)
    moved = _shift_right(log_alpha[:-1] + diagonals.label) > log_alpha[:-1] + diagonals.blank  # [N, B, U+1]
    columns = tf.scan(_step_back, moved, diagonals.num_labels, reverse=True)  # [N, B], the column of diagonal n
    max_labels = tf.shape(log_label)[2]
    label = tf.range(max_labels)  # [U]
    # A path leaves column u on the last diagonal at which its column is at most u.
    leaves = tf.math.count_nonzero(columns[:, :, None] <= label, axis=0, dtype=tf.int32) - 1  # [B, U]
    real = length_mask(diagonals.num_labels, max_labels) & tf.math.is_finite(score)[:, None]  # [B, U]
    return tf.where(real, leaves - label, -1), score


def _add(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    # log(exp(first) + exp(second)) by five kernels: the body of the loop is what a step costs on a CPU.
    larger = tf.maximum(first, second)
    return larger + tf.math.softplus(tf.minimum(first, second) - larger)


def _step_back(column: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
    column -= tf.cast(tf.gather(moved, column, batch_dims=1), tf.int32)
    return tf.maximum(column, 0)  # impossible lattices lead anywhere


def _posteriors(forward: ForwardPass, log_beta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    diagonals, log_alpha, log_likelihood = forward
    log_beta = log_beta[1:]  # [N, B, U+1], at the head of the blank arc
    before = log_alpha[:-1] - _at_end(diagonals, log_alpha[-1])[None, :, None]  # [N, B, U+1]
    blank = _unskew(tf.exp(before + diagonals.blank + log_beta))  # [B, T, U+1]
    label = _unskew(tf.exp(before + diagonals.label + _shift_left(log_beta)))  # [B, T, U+1]
    mask = node_mask(diagonals.num_frames, diagonals.num_labels, tf.shape(blank)[1], tf.shape(blank)[2] - 1)
    mask &= tf.math.is_finite(log_likelihood)[:, None, None]  # [B, T, U+1]
    return tf.where(mask, blank, 0.0), tf.where(mask, label, 0.0)[:, :, :-1]


def _forward(diagonals: Diagonals, add: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    start = tf.zeros_like(diagonals.num_labels)  # [B]
    return _advance(diagonals.blank, _shift_right(diagonals.label), start, add, backward=False)


def _backward(diagonals: Diagonals, add: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    return _advance(diagonals.blank, diagonals.label, diagonals.num_labels, add, backward=True)


@tf.function(reduce_retracing=True)  # for eager callers: the loop in Python would cost 2 ms a diagonal
def _advance(
    stay: tf.Tensor,
    move: tf.Tensor,
    start: tf.Tensor,
    add: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    backward: bool,
) -> tf.Tensor:
    """Walks over all diagonals from column `start` of the first, or of the last: [N+1, B, U+1].

    `move[n, b, u]` is the arc between column u and its neighbour: the left one forward, the right one backward.
    """
    first = tf.one_hot(start, tf.shape(stay)[2], on_value=0.0, off_value=LOG_ZERO)  # [B, U+1]

    def step(scores: tf.Tensor, arcs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return add(scores + arcs[0], _neighbours(scores, backward) + arcs[1])

    walked = tf.scan(step, (stay, move), first, reverse=backward)  # [N, B, U+1]
    return tf.concat([walked, first[None]] if backward else [first[None], walked], axis=0)


@tf.function(reduce_retracing=True)
def _advance_costs(
    stay: tf.Tensor,
    move: tf.Tensor,
    stay_cost: tf.Tensor,
    move_cost: tf.Tensor,
    start: tf.Tensor,
    *,
    backward: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`_advance` with the mean cost of the way to each node beside its score: [N+1, B, U+1] both."""
    first = tf.one_hot(start, tf.shape(stay)[2], on_value=0.0, off_value=LOG_ZERO)  # [B, U+1]

    def step(state: tuple[tf.Tensor, tf.Tensor], arcs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
        stayed, moved = state[0] + arcs[0], _neighbours(state[0], backward) + arcs[1]
        score = _add(stayed, moved)
        share = tf.exp(moved - score)
        cost = (1.0 - share) * (state[1] + arcs[2]) + share * (_neighbours(state[1], backward) + arcs[3])
        return score, cost

    start = first, tf.zeros_like(first)
    walked = tf.scan(step, (stay, move, stay_cost, move_cost), start, reverse=backward)  # [N, B, U+1] each
    ends = zip(walked, start, strict=True)
    return tuple(tf.concat([w, s[None]] if backward else [s[None], w], axis=0) for w, s in ends)


def _neighbours(values: tf.Tensor, backward: bool) -> tf.Tensor:
    # What has no neighbour meets itself, harmlessly: its arc is LOG_ZERO. (tf.roll would be 5 times slower.)
    if backward:
        return tf.concat([values[:, 1:], values[:, -1:]], axis=1)
    return tf.concat([values[:, :1], values[:, :-1]], axis=1)


def _limited(costs: tf.Tensor, arcs: tf.Tensor) -> tf.Tensor:
    # Costs of arcs that nobody can take must not spoil a mean by being infinite or NaN.
    return tf.where(arcs > 0.5 * LOG_ZERO, tf.clip_by_value(costs, LOG_ZERO, -LOG_ZERO), 0.0)


def _lay_out(log_blank: tf.Tensor, log_label: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor) -> Diagonals:
    num_frames, num_labels = tf.cast(num_frames, tf.int32), tf.cast(num_labels, tf.int32)
    # A loop over rows of unknown batch must not start from a vector of known batch.
    batch = tf.broadcast_static_shape(log_blank.shape[:1], num_frames.shape)
    log_blank, log_label = (tf.ensure_shape(arc, [*batch, None, None]) for arc in (log_blank, log_label))
    num_frames, num_labels = (tf.ensure_shape(lengths, batch) for lengths in (num_frames, num_labels))
    blank = _skew(tf.cast(log_blank, tf.float32))  # [N, B, U+1]
    label = _skew(tf.pad(tf.cast(log_label, tf.float32), [[0, 0], [0, 0], [0, 1]]))  # [N, B, U+1]
    column = tf.range(tf.shape(blank)[2])  # [U+1]
    frame = tf.range(tf.shape(blank)[0])[:, None, None] - column  # [N, 1, U+1]
    in_time = (frame >= 0) & (frame < num_frames[:, None])  # [N, B, U+1]
    last = column == num_labels[:, None]  # [B, U+1]
    # Beyond its last frame an utterance walks on for free, so that all of them end on diagonal N.
    beyond = tf.where(last & (frame >= num_frames[:, None]), 0.0, LOG_ZERO)  # [N, B, U+1]
    blank = tf.where(in_time & (column <= num_labels[:, None]), tf.maximum(blank, LOG_ZERO), beyond)
    label = tf.where(in_time & (column < num_labels[:, None]), tf.maximum(label, LOG_ZERO), LOG_ZERO)
    scale = tf.reduce_max(tf.maximum(blank, label), axis=2)  # [N, B]
    scale = tf.where(scale > LOG_ZERO, scale, 0.0)
    return Diagonals(blank - scale[:, :, None], label - scale[:, :, None], scale, num_frames, num_labels)


def _skew(scores: tf.Tensor) -> tf.Tensor:
    """[B, T, U+1] to [N, B, U+1] by pad and reshape: rows one longer than their length slip by one per column."""
    batch, frames, columns = tf.unstack(tf.shape(scores))
    rows = frames + columns - 1
    scores = tf.transpose(scores, [0, 2, 1])  # [B, U+1, T]
    scores = tf.reshape(tf.pad(scores, [[0, 0], [0, 0], [0, columns]]), [batch, -1])  # [B, (U+1)(N+1)]
    scores = tf.reshape(scores[:, : columns * rows], [batch, columns, rows])  # [B, U+1, N]
    return tf.transpose(scores, [2, 0, 1])  # [N, B, U+1]


def _unskew(scores: tf.Tensor) -> tf.Tensor:
    """[N, B, U+1] back to [B, T, U+1]."""
    rows, batch, columns = tf.unstack(tf.shape(scores))
    scores = tf.reshape(tf.transpose(scores, [1, 2, 0]), [batch, columns * rows])  # [B, (U+1)N]
    scores = tf.reshape(tf.pad(scores, [[0, 0], [0, columns]]), [batch, columns, rows + 1])  # [B, U+1, N+1]
    return tf.transpose(scores[:, :, : rows - columns + 1], [0, 2, 1])  # [B, T, U+1]


def _shift_right(arcs: tf.Tensor, fill: float = LOG_ZERO) -> tf.Tensor:
    return tf.pad(arcs[:, :, :-1], [[0, 0], [0, 0], [1, 0]], constant_values=fill)


def _shift_left(scores: tf.Tensor, fill: float = LOG_ZERO) -> tf.Tensor:
    return tf.pad(scores[:, :, 1:], [[0, 0], [0, 0], [0, 1]], constant_values=fill)


def _at_end(diagonals: Diagonals, scores: tf.Tensor) -> tf.Tensor:
    return tf.gather(scores, diagonals.num_labels, batch_dims=1)  # [B]


def _total(diagonals: Diagonals, log_alpha: tf.Tensor) -> tf.Tensor:
    return _open(_at_end(diagonals, log_alpha[-1]) + tf.reduce_sum(diagonals.scale, axis=0))  # [B]


def _open(scores: tf.Tensor) -> tf.Tensor:
    # Sums of a few LOG_ZERO and finite arcs all lie below half of it.
    return tf.where(scores > 0.5 * LOG_ZERO, scores, float("-inf"))
