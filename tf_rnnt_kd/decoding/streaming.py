"""Greedy transducer search over one chunk of frames; what it carries makes chunks equal to the whole."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import tensorflow as tf

from tf_rnnt_kd.decoding.hypotheses import Hypotheses

# While no label is emitted the prediction does not change, so the joint may look at several frames at once: fewer turns
# of the loop, for joint arithmetic that the next label makes void. Measured best on a CPU for characters; for word
# pieces, whose labels are rarer, 8 is as good.
_FRAMES_PER_LOOK = 4

Structure = TypeVar("Structure")
Join = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
StepPrediction = Callable[[tf.Tensor, tuple[tf.Tensor, ...]], tuple[tf.Tensor, tuple[tf.Tensor, ...]]]


class SearchState(NamedTuple):
    """All that a later chunk needs to know about the labels emitted so far.

    Attributes:
      predicted: [B, D], output of the prediction network after the last label.
      state: flat tuple of [B, ...] tensors, state of the prediction network.
    """

    predicted: tf.Tensor
    state: tuple[tf.Tensor, ...]


class _Look(NamedTuple):
    """What the next frames say before the prediction changes: blanks, then at most one label; all [B]."""

    num_blanks: tf.Tensor
    emits: tf.Tensor
    label: tf.Tensor
    score: tf.Tensor  # of the blanks
    label_log_prob: tf.Tensor  # 0 where none is emitted


class _Path(NamedTuple):
    """The path so far: where each utterance stands and what it has emitted."""

    frame: tf.Tensor  # [B], next frame to look at
    num_symbols: tf.Tensor  # [B], labels already emitted on that frame
    num_labels: tf.Tensor  # [B]
    scores: tf.Tensor  # [B]
    labels: tf.Tensor  # [B, L + 1]; the last column takes the writes of utterances that do not emit
    frames: tf.Tensor  # [B, L + 1]
    label_log_probs: tf.Tensor  # [B, L + 1]


def search_chunk(
    encoded: tf.Tensor,
    num_frames: tf.Tensor,
    carried: SearchState,
    *,
    join: Join,
    step_prediction: StepPrediction,
    blank_id: int = 0,
    max_symbols_per_frame: int = 4,
    max_labels: int | None = None,
) -> tuple[Hypotheses, SearchState]:
    """Follows the most probable arc of each lattice node, frame by frame.

    y = argmax_k join(encoded_t, predicted_u)_k; blank moves to (t + 1, u), a label to (t, u + 1). Each utterance keeps
    its own place, so that no one waits for another's labels: the loop runs about max_b(U_b + T_b / 4) times.
    A frame is always finished inside its chunk, hence a search over chunks equals the search over their concatenation.

    Args:
      encoded: [B, T, D] floating, encoder frames as they enter the joint; T may be 0.
      num_frames: [B] integer; what lies beyond may hold anything.
      carried: what the chunk before returned, or the initial prediction.
      join: (encoded [B, N, D], predicted [B, 1, D]) -> logits [B, N, V].
      step_prediction: (label [B] int32, state) -> (predicted [B, D], state).
      blank_id: index of blank.
      max_symbols_per_frame: labels a frame may emit; then only blank may follow (an untrained model emits for ever).
      max_labels: labels a chunk may hold, L; None leaves room for all that the cap above allows.

    Returns:
      The chunk's hypotheses (frames counted from the start of the chunk, score of the chunk alone), and the carry.
    """
    num_frames = tf.cast(num_frames, tf.int32)
    longest = tf.shape(encoded)[1] * max_symbols_per_frame
    capacity = longest if max_labels is None else tf.constant(max_labels, tf.int32)

    def unfinished(path: _Path, _: SearchState) -> tf.Tensor:
        return tf.reduce_any(path.frame < num_frames)

    def advance(path: _Path, search: SearchState) -> tuple[_Path, SearchState]:
        ahead = tf.range(_FRAMES_PER_LOOK)
        indices = path.frame[:, None] + ahead  # [B, N]
        valid = indices < num_frames[:, None]
        window = tf.gather(encoded, tf.where(valid, indices, 0), batch_dims=1)  # [B, N, D]
        logits = tf.cast(join(window, search.predicted[:, None, :]), tf.float32)  # [B, N, V]
        exhausted = (path.num_symbols >= max_symbols_per_frame)[:, None] & (ahead == 0)
        may_emit = valid & ~exhausted & (path.num_labels < capacity)[:, None]
        look = _look(logits, valid, may_emit, blank_id)
        after = (_extend(path, look, capacity), predict_where(look.emits, look.label, search, step_prediction))
        return tf.nest.map_structure(with_shape_of, after, (path, search))

    path, carried = tf.while_loop(unfinished, advance, (_start(tf.shape(encoded)[0], capacity), carried))
    labels, frames, label_log_probs = (written[:, :-1] for written in path[-3:])
    hypotheses = Hypotheses(labels, path.num_labels, path.scores, frames, label_log_probs)
    return hypotheses, carried


def _look(logits: tf.Tensor, valid: tf.Tensor, may_emit: tf.Tensor, blank_id: int) -> _Look:
    log_probs = tf.nn.log_softmax(logits)  # [B, N, V]
    best = tf.argmax(logits, -1, output_type=tf.int32)  # [B, N]
    is_label = may_emit & (best != blank_id)
    emits = tf.reduce_any(is_label, 1)  # [B]
    first = tf.argmax(tf.cast(is_label, tf.int32), 1, output_type=tf.int32)  # [B]
    num_blanks = tf.where(emits, first, tf.shape(logits)[1])
    is_blank = valid & (tf.range(tf.shape(logits)[1]) < num_blanks[:, None])
    score = tf.reduce_sum(tf.where(is_blank, log_probs[..., blank_id], 0.0), 1)  # [B]
    label = tf.gather(best, first, batch_dims=1)  # [B]
    label_score = tf.gather(tf.reduce_max(log_probs, -1), first, batch_dims=1)  # [B]
    return _Look(num_blanks, emits, label, score, tf.where(emits, label_score, 0.0))


def _extend(path: _Path, look: _Look, capacity: tf.Tensor) -> _Path:
    frame = path.frame + look.num_blanks
    column = tf.where(look.emits, path.num_labels, capacity)
    where = tf.stack([tf.range(tf.shape(column)[0]), column], 1)  # [B, 2]
    emitted = tf.cast(look.emits, tf.int32)
    return _Path(
        frame=frame,
        num_symbols=emitted + tf.where(look.num_blanks == 0, path.num_symbols, 0),
        num_labels=path.num_labels + emitted,
        scores=path.scores + look.score + look.label_log_prob,
        labels=tf.tensor_scatter_nd_update(path.labels, where, look.label),
        frames=tf.tensor_scatter_nd_update(path.frames, where, frame),
        label_log_probs=tf.tensor_scatter_nd_update(path.label_log_probs, where, look.label_log_prob),
    )


def predict_where(
    emits: tf.Tensor, label: tf.Tensor, search: SearchState, step_prediction: StepPrediction
) -> SearchState:
    """The prediction network moved on by `label` [B] in the rows that emit [B]; `label` is not read in the others."""
    predicted, state = step_prediction(label, search.state)
    return where_rows(emits, SearchState(predicted, tuple(state)), search)


def where_rows(condition: tf.Tensor, new: Structure, old: Structure) -> Structure:
    """Rows of `new` where `condition` [B] holds, else of `old`: structures of [B, ...]."""

    def choose(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(condition, [-1] + [1] * (old.shape.rank - 1)), new, old)

    return tf.nest.map_structure(choose, new, old)


def _start(batch_size: tf.Tensor, capacity: tf.Tensor) -> _Path:
    zeros = tf.zeros([batch_size], tf.int32)
    empty = tf.zeros([batch_size, capacity + 1], tf.int32)
    return _Path(zeros, zeros, zeros, tf.zeros([batch_size]), empty, empty, tf.cast(empty, tf.float32))


def with_shape_of(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """Gives back static sizes that step functions have lost: a loop may not change a shape."""
    new.set_shape(old.shape)
    return new
