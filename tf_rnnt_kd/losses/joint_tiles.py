"""Joint network, transducer loss and lattice KL tile by tile: the lattice's logits never exist as a whole."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import distillation, transducer
from tf_rnnt_kd.masks import length_mask, zero_padding

# Floats one tile's intermediate tensors may take together when the caller names no tile (256 MB): far below a
# device's memory, far above the cost of starting a tile.
TILE_FLOATS = 1 << 26


class JointInputs(NamedTuple):
    """What a joint network makes its logits from: `tanh(encoded_t + predicted_u) @ kernel + bias`.

    Attributes:
      encoded: [B, T, D] floating, encoder frames, projected.
      predicted: [B, U+1, D] floating, prediction-network outputs, projected.
      kernel: [D, V] floating.
      bias: [V] floating.
    """

    encoded: tf.Tensor
    predicted: tf.Tensor
    kernel: tf.Tensor
    bias: tf.Tensor


class _Task(NamedTuple):
    """What all tiles have in common."""

    teacher: JointInputs | tf.Tensor | None
    upcoming: tf.Tensor
    num_frames: tf.Tensor
    num_labels: tf.Tensor
    blank_id: int
    temperature: float
    teacher_delay: int
    divergence: distillation.NodeDivergence
    kept_frames: int | tf.Tensor
    num_tiles: int | tf.Tensor
    frames_per_tile: int | tf.Tensor


class _Upstream(NamedTuple):
    """What the gradient of a tile needs from outside.

    Attributes:
      blank: [B, T, U+1], gradient by log_blank.
      label: [B, T, U+1], gradient by log_label.
      divergence: [B], gradient by the KL.
      log_norm: [B, T, U+1], kept from the first pass.
    """

    blank: tf.Tensor
    label: tf.Tensor
    divergence: tf.Tensor
    log_norm: tf.Tensor


class _Tile(NamedTuple):
    """A stretch of n frames.

    Attributes:
      frames: [n] int32.
      real: [B, n, U+1] bool, nodes of the lattice.
      matched: [B, n, U+1] bool, those that have a counterpart in the teacher.
      hidden: [B, n, U+1, D], the student's tanh.
      logits: [B, n, U+1, V], the student's.
      teacher: [B, n, U+1, V], the teacher's logits over the temperature, or None.
    """

    frames: tf.Tensor
    real: tf.Tensor
    matched: tf.Tensor
    hidden: tf.Tensor
    logits: tf.Tensor
    teacher: tf.Tensor | None


def joint_tile_losses(
    student: JointInputs,
    teacher: JointInputs | tf.Tensor | None,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    blank_id: int = 0,
    fastemit_lambda: float = 0.0,
    temperature: float = 1.0,
    teacher_delay: int = 0,
    frames_per_tile: int | None = None,
    kl: str = "lattice",
) -> tuple[tf.Tensor, tf.Tensor]:
    """`transducer_loss` and `lattice_kl` (or `collapsed_lattice_kl`) of a student, without storing its logits.

    The frames are cut into tiles. A first pass over them keeps the two arcs of each node and the KL; the gradient makes
    each tile's logits a second time, unless one tile holds all frames. With n frames in a tile the memory is
    O(B T U + B n U (V + D)).

    Args:
      student: `JointInputs`; the gradient goes to its four tensors. Padding may hold anything.
      teacher: `JointInputs` of the same B, T, U and V (the width may differ), or stored logits [B, T, U+1, V] floating,
        or None for no KL. It has no gradient.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      blank_id: the blank's class.
      fastemit_lambda: weight of FastEmit, as in `transducer_loss`.
      temperature: for the KL only, as in `lattice_kl`.
      teacher_delay: the student's node (t + delay, u) is compared with the teacher's (t, u), in frames, >= 0; the
        student's first `delay` frames and the teacher's last ones have no counterpart.
      frames_per_tile: frames at a time, or None to choose by memory.
      kl: "lattice" for all classes, "collapsed" for blank, next label and rest.

    Returns:
      (transducer [B], kl [B]) float32, in nats.

    Raises:
      ValueError: `kl` is not one of the two, or the delay is negative.
    """
    if kl not in distillation.DIVERGENCES or teacher_delay < 0:
        names = list(distillation.DIVERGENCES)
        raise ValueError(f"kl={kl!r} must be one of {names}, and teacher_delay={teacher_delay} at least 0")
    student = _cleaned(student, num_frames, num_labels)
    kept_frames, num_tiles, frames_per_tile = _tiling(student, frames_per_tile)
    task = _Task(
        teacher=_frozen(teacher, num_frames, num_labels),
        upcoming=transducer.next_labels(labels, num_labels),
        num_frames=tf.cast(num_frames, tf.int32),
        num_labels=tf.cast(num_labels, tf.int32),
        blank_id=blank_id,
        temperature=temperature,
        teacher_delay=teacher_delay,
        divergence=distillation.DIVERGENCES[kl],
        kept_frames=kept_frames,
        num_tiles=num_tiles,
        frames_per_tile=frames_per_tile,
    )
    log_blank, log_label, divergence = _nodes(task, student)
    loss = transducer.arc_loss(log_blank, log_label, num_frames, num_labels, fastemit_lambda=fastemit_lambda)
    return loss, divergence


def _cleaned(inputs: JointInputs, num_frames: tf.Tensor, num_labels: tf.Tensor) -> JointInputs:
    encoded, predicted, kernel, bias = (tf.cast(tf.convert_to_tensor(values), tf.float32) for values in inputs)
    return JointInputs(zero_padding(encoded, num_frames), zero_padding(predicted, num_labels + 1), kernel, bias)


def _frozen(
    teacher: JointInputs | tf.Tensor | None, num_frames: tf.Tensor, num_labels: tf.Tensor
) -> JointInputs | tf.Tensor | None:
    if isinstance(teacher, JointInputs):
        return JointInputs(*map(tf.stop_gradient, _cleaned(teacher, num_frames, num_labels)))
    return teacher if teacher is None else tf.stop_gradient(tf.convert_to_tensor(teacher))


def _tiling(student: JointInputs, frames_per_tile: int | None) -> tuple[int | tf.Tensor, ...]:
    """(frames kept for the gradient, number of tiles in the loop, frames in each).

    If one tile holds all frames it is kept, and the loop has nothing to do; otherwise nothing is kept. Where the shapes
    are unknown both are in the graph, one of them over no frames: a `tf.cond` could not return either under XLA.
    """
    batch, frames, width = _sizes(student.encoded)
    columns, vocabulary = _sizes(student.predicted)[1], _sizes(student.bias)[0]
    if frames_per_tile is None:
        frames_per_tile = 1 + TILE_FLOATS // (3 * width + 5 * vocabulary) // (batch * columns)
    num_tiles = -(-frames // frames_per_tile)
    frames_per_tile = -(-frames // num_tiles)
    if isinstance(num_tiles, int):
        return (frames, 0, 0) if num_tiles == 1 else (0, num_tiles, frames_per_tile)
    one = num_tiles == 1
    return tf.where(one, frames, 0), num_tiles, tf.where(one, 0, frames_per_tile)


def _sizes(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    return [tf.shape(tensor)[axis] if size is None else size for axis, size in enumerate(tensor.shape)]


def _nodes(task: _Task, student: JointInputs) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """log_blank [B, T, U+1], log_label [B, T, U] and the KL [B], with their gradient by the student."""

    @tf.custom_gradient
    def nodes(*tensors: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        student = JointInputs(*tensors)
        kept = _make_tile(task, student, tf.range(task.kept_frames))

        def gradient(blank: tf.Tensor, label: tf.Tensor, divergence: tf.Tensor) -> tuple[tf.Tensor, ...]:
            upstream = _Upstream(blank, tf.pad(label, [[0, 0], [0, 0], [0, 1]]), divergence, log_norm)
            joined, sums = _over_tiles(task, student, kept, lambda tile: _visit_back(task, student, upstream, tile))
            return *joined, *sums

        joined, (divergence,) = _over_tiles(task, student, kept, lambda tile: _visit(task, tile))
        log_blank, log_label, log_norm = joined
        return (log_blank, log_label[:, :, :-1], divergence), gradient

    return nodes(*student)


def _over_tiles(
    task: _Task, student: JointInputs, kept: _Tile, visit: Callable[[_Tile], tuple[tuple, tuple]]
) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
    """Joins the first part of what `visit` makes of each tile along the frames, and adds up the second."""
    first, sums = visit(kept)
    if isinstance(task.num_tiles, int) and task.num_tiles == 0:
        return first, sums

    def body(index: tf.Tensor, arrays: tuple, sums: tuple) -> tuple:
        frames = index * task.frames_per_tile + tf.range(task.frames_per_tile)  # [n]
        joined, added = visit(_make_tile(task, student, frames))
        arrays = tuple(array.write(index, values) for array, values in zip(arrays, joined, strict=True))
        return index + 1, arrays, tuple(tf.ensure_shape(a + b, a.shape) for a, b in zip(sums, added, strict=True))

    arrays = tuple(tf.TensorArray(tf.float32, task.num_tiles) for _ in first)
    _, arrays, sums = tf.while_loop(lambda index, *_: index < task.num_tiles, body, (0, arrays, sums))
    pairs = zip(first, map(_along_frames, arrays), strict=True)
    max_frames = tf.shape(student.encoded)[1]
    return tuple(tf.concat(pair, axis=1)[:, :max_frames] for pair in pairs), sums


def _along_frames(array: tf.TensorArray) -> tf.Tensor:
    """K times [B, n, W] to [B, K n, W]."""
    tiles = array.stack()  # [K, B, n, W]
    count, batch, frames, width = tf.unstack(tf.shape(tiles))
    return tf.reshape(tf.transpose(tiles, [1, 0, 2, 3]), [batch, count * frames, width])


def _visit(task: _Task, tile: _Tile) -> tuple[tuple, tuple]:
    """(log_blank, log_label, log_norm) [B, n, U+1] of a tile; its KL [B]."""
    nodes = transducer.node_arcs(tile.logits, task.upcoming, task.blank_id)
    if tile.teacher is None:
        return nodes, (tf.zeros_like(task.num_frames, tf.float32),)
    logits, log_norm = _tempered(task, tile.logits, nodes[2])
    divergence = task.divergence.value(tile.teacher, logits, log_norm, task.upcoming, task.blank_id)  # [B, n, U+1]
    return nodes, (tf.reduce_sum(tf.where(tile.matched, divergence, 0.0), axis=[1, 2]),)


def _visit_back(task: _Task, student: JointInputs, upstream: _Upstream, tile: _Tile) -> tuple[tuple, tuple]:
    """A tile's gradients: by encoded [B, n, D]; by predicted, kernel and bias."""
    logits = tf.reshape(_logits_gradient(task, tile, upstream), [-1, tf.shape(tile.logits)[3]])  # [BnU, V]
    hidden = tf.reshape(tile.hidden, [-1, tf.shape(tile.hidden)[3]])  # [BnU, D]
    into_tanh = tf.raw_ops.TanhGrad(y=hidden, dy=tf.matmul(logits, student.kernel, transpose_b=True))  # [BnU, D]
    into_tanh = tf.reshape(into_tanh, tf.shape(tile.hidden))  # [B, n, U+1, D]
    kernel = tf.matmul(hidden, logits, transpose_a=True)  # [D, V]
    sums = (tf.reduce_sum(into_tanh, axis=1), kernel, tf.reduce_sum(logits, axis=0))
    return (tf.reduce_sum(into_tanh, axis=2),), sums


def _logits_gradient(task: _Task, tile: _Tile, upstream: _Upstream) -> tf.Tensor:
    """[B, n, U+1, V]."""
    blank = tf.where(tile.real, _take(upstream.blank, tile.frames), 0.0)  # [B, n, U+1]
    label = tf.where(tile.real, _take(upstream.label, tile.frames), 0.0)
    log_norm = _take(upstream.log_norm, tile.frames)
    result = transducer.node_targets(task.upcoming, task.blank_id, tf.shape(tile.logits)[3], blank, label)
    result -= (blank + label)[..., None] * transducer.softmax(tile.logits, log_norm)  # [B, n, U+1, V]
    if tile.teacher is None:
        return result
    weight = tf.where(tile.matched, upstream.divergence[:, None, None] / task.temperature, 0.0)  # [B, n, U+1]
    logits, log_norm = _tempered(task, tile.logits, log_norm)
    target = task.divergence.target(tile.teacher, logits, task.upcoming, task.blank_id)
    return result + weight[..., None] * (transducer.softmax(logits, log_norm) - target)


def _tempered(task: _Task, logits: tf.Tensor, log_norm: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if task.temperature == 1.0:
        return logits, log_norm
    logits /= task.temperature
    return logits, transducer.log_sum_exp(logits)


def _make_tile(task: _Task, student: JointInputs, frames: tf.Tensor) -> _Tile:
    columns = length_mask(task.num_labels + 1, tf.shape(task.upcoming)[1])  # [B, U+1]
    in_time = frames < task.num_frames[:, None]  # [B, n]
    real = in_time[:, :, None] & columns[:, None]  # [B, n, U+1]
    matched = real & (frames >= task.teacher_delay)[:, None]
    teacher = _teacher_logits(task, frames - task.teacher_delay, matched)
    return _Tile(frames, real, matched, *_join(student, frames), teacher)


def _teacher_logits(task: _Task, frames: tf.Tensor, matched: tf.Tensor) -> tf.Tensor | None:
    if task.teacher is None:
        return None
    if isinstance(task.teacher, JointInputs):
        return _join(task.teacher, frames)[1] / task.temperature
    logits = tf.cast(_take(task.teacher, frames), tf.float32)  # [B, n, U+1, V]
    return tf.where(matched[..., None], logits, 0.0) / task.temperature  # padding may hold NaN


def _join(inputs: JointInputs, frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The tanh [B, n, U+1, D] and the logits [B, n, U+1, V] of some frames."""
    hidden = tf.tanh(_take(inputs.encoded, frames)[:, :, None] + inputs.predicted[:, None])  # [B, n, U+1, D]
    batch, count, columns, width = tf.unstack(tf.shape(hidden))
    # As one matrix product: three times as fast on a CPU as the batched one.
    logits = tf.nn.bias_add(tf.matmul(tf.reshape(hidden, [-1, width]), inputs.kernel), inputs.bias)
    return hidden, tf.reshape(logits, [batch, count, columns, tf.shape(inputs.bias)[0]])  # count may be 0


def _take(values: tf.Tensor, frames: tf.Tensor) -> tf.Tensor:
    # Frames outside are masked later; here they need only be some frame.
    return tf.gather(values, tf.clip_by_value(frames, 0, tf.shape(values)[1] - 1), axis=1)
