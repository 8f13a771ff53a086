"""The joint network tile by tile: the lattice's logits never exist as a whole.

The lattice is cut into blocks of 16 frames by 4 columns, and a tile is as many blocks as memory allows, taken from a
list (`joint_passes`).
"""

from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import transducer
from tf_rnnt_kd.losses.blocks import BLOCK_COLUMNS, BLOCK_FRAMES, BLOCK_NODES, Grid, make_grid, padded, sizes
from tf_rnnt_kd.losses.lattice import node_mask
from tf_rnnt_kd.losses.nodes import NodeTask
from tf_rnnt_kd.masks import zero_padding

# Floats one tile's intermediate tensors may take together when the caller names no tile: 32 MB, about what a CPU's last
# cache holds.
TILE_FLOATS = 1 << 23
# Floats of logits that a training step may keep between its passes: 512 MB.
KEPT_FLOATS = 1 << 27


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


class Task(NamedTuple):
    """What all tiles have in common; tensors are cut into blocks, but for stored logits."""

    grid: Grid
    mask: tf.Tensor  # [B rows stripes, 16, 4] bool, nodes of an utterance
    teacher: JointInputs | tf.Tensor | None
    upcoming: tf.Tensor  # [B stripes, 4]
    node: NodeTask
    product_dtype: tf.DType


class Tile(NamedTuple):
    """Some blocks, of n nodes together.

    Attributes:
      blocks: [G] int32, which of the B rows stripes.
      hidden: [n, D], the student's tanh.
      logits: [n, V], the student's.
      teacher: [n, V], the teacher's logits over the temperature, or None.
      upcoming: [n] int32, next labels, -1 for none.
    """

    blocks: tf.Tensor
    hidden: tf.Tensor
    logits: tf.Tensor
    teacher: tf.Tensor | None
    upcoming: tf.Tensor


def make_task(
    student: JointInputs,
    teacher: JointInputs | tf.Tensor | None,
    utterances: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    node: NodeTask,
    frames_per_tile: int | None,
    product_dtype: str,
) -> Task:
    """Cuts a batch into blocks; the arguments are those of `joint_passes.joint_nodes`, the student's cleaned."""
    labels, num_frames, num_labels = utterances
    (batch, frames, _), (_, columns, _) = sizes(student.encoded), sizes(student.predicted)
    nodes = _nodes_at_once(*sizes(student.kernel)) if frames_per_tile is None else frames_per_tile * batch * columns
    grid = make_grid(batch, frames, columns, nodes)
    mask = node_mask(num_frames, num_labels, frames, columns - 1)
    upcoming = padded(transducer.next_labels(labels, num_labels), 1, BLOCK_COLUMNS, value=-1)
    return Task(
        grid=grid,
        mask=grid.cut(mask),
        teacher=_frozen(teacher, num_frames, num_labels),
        upcoming=tf.reshape(upcoming, [-1, BLOCK_COLUMNS]),
        node=node,
        product_dtype=tf.as_dtype(product_dtype),
    )


def cleaned(inputs: JointInputs, num_frames: tf.Tensor, num_labels: tf.Tensor) -> JointInputs:
    """The same in float32, 0 in padding, whatever that held."""
    encoded, predicted, kernel, bias = (tf.cast(tf.convert_to_tensor(values), tf.float32) for values in inputs)
    return JointInputs(zero_padding(encoded, num_frames), zero_padding(predicted, num_labels + 1), kernel, bias)


def _frozen(
    teacher: JointInputs | tf.Tensor | None, num_frames: tf.Tensor, num_labels: tf.Tensor
) -> JointInputs | tf.Tensor | None:
    if isinstance(teacher, JointInputs):
        return cut(JointInputs(*map(tf.stop_gradient, cleaned(teacher, num_frames, num_labels))))
    return teacher if teacher is None else tf.stop_gradient(tf.convert_to_tensor(teacher))


def tile_nodes(batch: int, frames: int, labels: int, width: int, vocabulary: int) -> int:
    """The nodes of a tile, by the memory that they may take together, for a batch of this shape."""
    return make_grid(batch, frames, labels + 1, _nodes_at_once(width, vocabulary)).blocks_per_tile * BLOCK_NODES


def _nodes_at_once(width: int | tf.Tensor, vocabulary: int | tf.Tensor) -> int | tf.Tensor:
    return TILE_FLOATS // (3 * width + 5 * vocabulary)


def tiles_kept(grid: Grid, vocabulary: int | tf.Tensor) -> int | tf.Tensor:
    """How many tiles' logits may be kept, at least one, so that a small lattice is made once."""
    tiles = KEPT_FLOATS // (grid.blocks_per_tile * BLOCK_NODES * vocabulary)
    static = isinstance(tiles, int) and isinstance(grid.num_tiles, int)
    return max(1, min(tiles, grid.num_tiles)) if static else tf.maximum(1, tf.minimum(tiles, grid.num_tiles))


def kept_floats(batch: int, frames: int, labels: int, width: int, vocabulary: int) -> int:
    """What a training step keeps of a batch of this shape."""
    grid = make_grid(batch, frames, labels + 1, _nodes_at_once(width, vocabulary))
    return tiles_kept(grid, vocabulary) * grid.blocks_per_tile * BLOCK_NODES * vocabulary


def make_tile(task: Task, student: JointInputs, blocks: tf.Tensor) -> Tile:
    """The joint network of some blocks, the student's and the teacher's."""
    hidden = _hidden(task.grid, student, blocks)
    return _tile(task, blocks, hidden, _logits(task, student, hidden))


def tile_again(task: Task, student: JointInputs, blocks: tf.Tensor, logits: tf.Tensor) -> Tile:
    """`make_tile` of blocks whose logits [n, V], the student's, were kept."""
    return _tile(task, blocks, _hidden(task.grid, student, blocks), logits)


def _tile(task: Task, blocks: tf.Tensor, hidden: tf.Tensor, logits: tf.Tensor) -> Tile:
    upcoming = tf.gather(task.upcoming, task.grid.origin(blocks)[1])[:, None]  # [G, 1, 4]
    upcoming = tf.reshape(tf.tile(upcoming, [1, BLOCK_FRAMES, 1]), [-1])  # [n]
    return Tile(blocks, hidden, logits, _teacher_logits(task, blocks), upcoming)


def _teacher_logits(task: Task, blocks: tf.Tensor) -> tf.Tensor | None:
    if task.teacher is None:
        return None
    if isinstance(task.teacher, JointInputs):
        logits = _logits(task, task.teacher, _hidden(task.grid, task.teacher, blocks))
    else:
        logits = _stored_logits(task.grid, task.teacher, blocks)
        mask = tf.reshape(tf.gather(task.mask, blocks), [-1, 1])
        logits = tf.where(mask, tf.cast(logits, tf.float32), 0.0)  # padding may hold NaN
    return logits if task.node.temperature == 1.0 else logits / task.node.temperature


def _hidden(grid: Grid, inputs: JointInputs, blocks: tf.Tensor) -> tf.Tensor:
    """The tanh of some blocks, [n, D]."""
    row, stripe = grid.origin(blocks)
    hidden = tf.tanh(tf.gather(inputs.encoded, row)[:, :, None] + tf.gather(inputs.predicted, stripe)[:, None])
    return tf.reshape(hidden, [-1, sizes(inputs.kernel)[0]])


def _logits(task: Task, inputs: JointInputs, hidden: tf.Tensor) -> tf.Tensor:
    """[n, D] to [n, V]."""
    return tf.nn.bias_add(product(task, hidden, inputs.kernel), inputs.bias)


def product(task: Task, first: tf.Tensor, second: tf.Tensor, **transposed: bool) -> tf.Tensor:
    """A matrix product of the task's precision, in float32."""
    first, second = tf.cast(first, task.product_dtype), tf.cast(second, task.product_dtype)
    return tf.cast(tf.matmul(first, second, **transposed), tf.float32)


def _stored_logits(grid: Grid, logits: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
    """[n, V], of its dtype; beyond the last frame and column the last one again."""
    row, stripe = grid.origin(blocks)
    frame = (row % grid.rows)[:, None] * BLOCK_FRAMES + tf.range(BLOCK_FRAMES)  # [G, 16]
    column = (stripe % grid.stripes)[:, None] * BLOCK_COLUMNS + tf.range(BLOCK_COLUMNS)  # [G, 8]
    frame, column = tf.minimum(frame, grid.frames - 1), tf.minimum(column, grid.columns - 1)
    node = (row // grid.rows)[:, None] * grid.frames + frame  # [G, 16], the frame's place in the batch
    node = node[:, :, None] * grid.columns + column[:, None]  # [G, 16, 4]
    vocabulary = sizes(logits)[3]
    return tf.gather(tf.reshape(logits, [-1, vocabulary]), tf.reshape(node, [-1]))


def cut(inputs: JointInputs) -> JointInputs:
    """Frames [B rows, 16, D] and columns [B stripes, 4, D]."""
    encoded = padded(inputs.encoded, 1, BLOCK_FRAMES)
    predicted = padded(inputs.predicted, 1, BLOCK_COLUMNS)
    width = sizes(inputs.kernel)[0]
    encoded = tf.reshape(encoded, [-1, BLOCK_FRAMES, width])
    return JointInputs(encoded, tf.reshape(predicted, [-1, BLOCK_COLUMNS, width]), inputs.kernel, inputs.bias)
