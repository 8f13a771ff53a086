"""The joint network and what its logits are needed for, tile by tile: the lattice's logits never exist as a whole.

The lattice is cut into blocks of 16 frames by 8 columns, and a tile is as many blocks as memory allows, taken from a
list. In the first pass the list holds the blocks with nodes of an utterance; for the gradient, those with a node whose
gradient counts. So neither padding nor the corners that no alignment reaches cost a product.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import distillation, transducer
from tf_rnnt_kd.losses.lattice import node_mask
from tf_rnnt_kd.losses.nodes import NodeDivergence, NodeTask, node_gradient, node_values
from tf_rnnt_kd.masks import zero_padding

BLOCK_FRAMES = 16
BLOCK_COLUMNS = 8

# Floats one tile's intermediate tensors may take together when the caller names no tile: 32 MB, about what a CPU's last
# cache holds.
TILE_FLOATS = 1 << 23

# Nodes whose gradient is smaller than this share of their utterance's largest are left out. A lattice of 2^16 of them
# would change a sum by less than float32 rounds it.
NEGLIGIBLE = 2.0**-40


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


class LatticeNodes(NamedTuple):
    """What is kept of each node's logits.

    Attributes:
      log_blank: [B, T, U+1] float32, log-probability of the blank.
      log_label: [B, T, U] float32, log-probability of the next label.
      divergence: [B, T, U+1] float32, from the teacher's distribution, 0 without a teacher.
    """

    log_blank: tf.Tensor
    log_label: tf.Tensor
    divergence: tf.Tensor


class _Grid(NamedTuple):
    """How a lattice is cut: `rows` times `stripes` blocks an utterance, `blocks_per_tile` at a time."""

    batch: int | tf.Tensor
    frames: int | tf.Tensor
    columns: int | tf.Tensor
    rows: int | tf.Tensor
    stripes: int | tf.Tensor
    blocks_per_tile: int | tf.Tensor


class _Task(NamedTuple):
    """What all tiles have in common; tensors are cut into blocks, but for stored logits."""

    grid: _Grid
    mask: tf.Tensor  # [B rows stripes, 16, 8] bool, nodes of an utterance
    teacher: JointInputs | tf.Tensor | None
    upcoming: tf.Tensor  # [B stripes, 8]
    node: NodeTask
    product_dtype: tf.DType


class _Tile(NamedTuple):
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


def joint_nodes(
    student: JointInputs,
    teacher: JointInputs | tf.Tensor | None,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    blank_id: int = 0,
    divergence: NodeDivergence = distillation.LATTICE,
    temperature: float = 1.0,
    frames_per_tile: int | None = None,
    product_dtype: str = "float32",
) -> LatticeNodes:
    """The arcs of every node and its divergence from a teacher, without storing logits.

    The first tile is kept for the gradient, which makes all others a second time. With n nodes in a tile the memory is
    O(B T U + n (V + D)); the products with the kernel are one a node, two with a teacher, and for the gradient three,
    or four, a node that counts.

    Args:
      student: `JointInputs`; the gradient goes to its four tensors. Padding may hold anything.
      teacher: `JointInputs` of the same B, T, U and V (the width may differ), or stored logits [B, T, U+1, V] floating,
        or None. It has no gradient.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      blank_id: the blank's class.
      divergence: of teacher and student at a node.
      temperature: for the divergence, both logits are divided by it.
      frames_per_tile: a tile has the nodes of that many frames of the batch, in whole blocks; None to choose by memory.
        It changes results by rounding only.
      product_dtype: "float32", or "bfloat16" for faster products where the device has them; all else stays float32.

    Returns:
      `LatticeNodes`, 0 in padding.
    """
    mask = node_mask(num_frames, num_labels, _sizes(student.encoded)[1], _sizes(student.predicted)[1] - 1)
    student = cleaned(student, num_frames, num_labels)
    grid = _grid(student, frames_per_tile)
    upcoming = _padded(transducer.next_labels(labels, num_labels), 1, BLOCK_COLUMNS, value=-1)
    task = _Task(
        grid=grid,
        mask=_to_blocks(mask, grid),
        teacher=_frozen(teacher, num_frames, num_labels),
        upcoming=tf.reshape(upcoming, [-1, BLOCK_COLUMNS]),
        node=NodeTask(blank_id, temperature, divergence),
        product_dtype=tf.as_dtype(product_dtype),
    )

    @tf.custom_gradient
    def nodes(*tensors: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        blocks = _cut(JointInputs(*tensors))
        values, visited = _first_pass(task, blocks)

        def gradient(*upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # What lies in padding has no gradient, whatever a caller adds up.
            upstream = [_to_blocks(tf.where(mask, values, 0.0), grid) for values in upstream]
            return tuple(_second_pass(task, blocks, visited, upstream))

        return tuple(tf.where(mask, _from_blocks(blocks, grid), 0.0) for blocks in values), gradient

    log_blank, log_label, divergences = nodes(*student)
    return LatticeNodes(log_blank, log_label[:, :, :-1], divergences)


def cleaned(inputs: JointInputs, num_frames: tf.Tensor, num_labels: tf.Tensor) -> JointInputs:
    """The same in float32, 0 in padding, whatever that held."""
    encoded, predicted, kernel, bias = (tf.cast(tf.convert_to_tensor(values), tf.float32) for values in inputs)
    return JointInputs(zero_padding(encoded, num_frames), zero_padding(predicted, num_labels + 1), kernel, bias)


def _frozen(
    teacher: JointInputs | tf.Tensor | None, num_frames: tf.Tensor, num_labels: tf.Tensor
) -> JointInputs | tf.Tensor | None:
    if isinstance(teacher, JointInputs):
        return _cut(JointInputs(*map(tf.stop_gradient, cleaned(teacher, num_frames, num_labels))))
    return teacher if teacher is None else tf.stop_gradient(tf.convert_to_tensor(teacher))


def _grid(student: JointInputs, frames_per_tile: int | None) -> _Grid:
    (batch, frames, _), columns = _sizes(student.encoded), _sizes(student.predicted)[1]
    width, vocabulary = _sizes(student.kernel)
    rows, stripes = -(-frames // BLOCK_FRAMES), -(-columns // BLOCK_COLUMNS)
    if frames_per_tile is None:
        nodes = TILE_FLOATS // (3 * width + 5 * vocabulary)
    else:
        nodes = frames_per_tile * batch * columns
    return _Grid(batch, frames, columns, rows, stripes, _blocks_per_tile(batch * rows * stripes, nodes))


def _blocks_per_tile(total: int | tf.Tensor, nodes: int | tf.Tensor) -> int | tf.Tensor:
    at_once = nodes // (BLOCK_FRAMES * BLOCK_COLUMNS)
    # In graphs only Python's own numbers give tiles a static shape.
    static = isinstance(total, int) and isinstance(at_once, int)
    largest, least = (max, min) if static else (tf.maximum, tf.minimum)
    total = largest(1, total)
    num_tiles = -(-total // least(largest(1, at_once), total))
    return -(-total // num_tiles)  # equally full


def tile_nodes(batch: int, frames: int, labels: int, width: int, vocabulary: int) -> int:
    """The nodes of a tile, by the memory that they may take together, for a batch of this shape."""
    total = batch * -(-frames // BLOCK_FRAMES) * -(-(labels + 1) // BLOCK_COLUMNS)
    return _blocks_per_tile(total, TILE_FLOATS // (3 * width + 5 * vocabulary)) * BLOCK_FRAMES * BLOCK_COLUMNS


class _Visited(NamedTuple):
    """What the first pass leaves for the gradient.

    Attributes:
      first: the first tile, kept.
      place: [B rows stripes] int32, where each block stood in the list of the first pass, -1 for not.
      log_norm: [B rows stripes, 16, 8].
    """

    first: _Tile
    place: tf.Tensor
    log_norm: tf.Tensor


def _first_pass(task: _Task, student: JointInputs) -> tuple[list[tf.Tensor], _Visited]:
    """log_blank, log_label and divergence, [B rows stripes, 16, 8] each."""
    tiles, place, count = _listed(tf.reduce_any(task.mask, axis=[1, 2]), task.grid)

    def write(array: tf.TensorArray, index: int | tf.Tensor, tile: _Tile) -> tf.TensorArray:
        values = tf.stack(node_values(task.node, tile.logits, tile.teacher, tile.upcoming))  # [4, n]
        return array.write(index, tf.reshape(values, [4, -1, BLOCK_FRAMES, BLOCK_COLUMNS]))

    def body(index: tf.Tensor, array: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return index + 1, write(array, index, _make_tile(task, student, tiles[index]))

    first = _make_tile(task, student, tiles[0])
    array = write(tf.TensorArray(tf.float32, tf.shape(tiles)[0]), 0, first)
    array = tf.while_loop(lambda index, _: index < count, body, (1, array), parallel_iterations=1)[1]
    values = tf.transpose(array.stack(), [1, 0, 2, 3, 4])  # [4, K, G, 16, 8]
    values = tf.reshape(values, [4, -1, BLOCK_FRAMES, BLOCK_COLUMNS])
    *values, log_norm = tf.unstack(tf.gather(values, tf.maximum(place, 0), axis=1))  # not on the list: anything
    return values, _Visited(first, place, log_norm)


def _second_pass(task: _Task, student: JointInputs, visited: _Visited, upstream: list[tf.Tensor]) -> JointInputs:
    """Gradients by encoded [B, T, D], predicted [B, U+1, D], kernel and bias; upstream is in blocks."""
    grid = task.grid
    largest = tf.reduce_max(tf.abs(tf.stack(upstream)), axis=[0, 2, 3])  # [B rows stripes]
    limit = NEGLIGIBLE * tf.reduce_max(tf.reshape(largest, [grid.batch, -1]), axis=1, keepdims=True)  # [B, 1]
    limit = tf.reshape(tf.broadcast_to(limit, [grid.batch, grid.rows * grid.stripes]), [-1])
    kept = (visited.place >= 0) & (visited.place < grid.blocks_per_tile)
    tiles, place, count = _listed(~kept & ~(largest <= limit), grid)  # "not <=" keeps NaN visible
    values = tf.stack([visited.log_norm, *upstream])  # [4, B rows stripes, 16, 8]

    def add(sums: JointInputs, tile: _Tile, index: int | tf.Tensor, place: tf.Tensor) -> JointInputs:
        # The last tile is filled up with blocks that are not on the list.
        listed = tf.gather(place, tile.blocks) == index * grid.blocks_per_tile + tf.range(grid.blocks_per_tile)
        own = tf.where(listed[:, None, None], tf.gather(values, tile.blocks, axis=1), 0.0)  # [4, G, 16, 8]
        return _add_gradient(task, student, sums, tile, tf.unstack(tf.reshape(own, [4, -1])))

    def body(index: tf.Tensor, sums: JointInputs) -> tuple[tf.Tensor, JointInputs]:
        return index + 1, add(sums, _make_tile(task, student, tiles[index]), index, place)

    sums = add(JointInputs(*map(tf.zeros_like, student)), visited.first, 0, visited.place)
    sums = tf.while_loop(lambda index, _: index < count, body, (0, sums), parallel_iterations=1)[1]
    width = _sizes(student.kernel)[0]
    return sums._replace(
        encoded=tf.reshape(sums.encoded, [grid.batch, -1, width])[:, : grid.frames],
        predicted=tf.reshape(sums.predicted, [grid.batch, -1, width])[:, : grid.columns],
    )


def _add_gradient(
    task: _Task, student: JointInputs, sums: JointInputs, tile: _Tile, values: list[tf.Tensor]
) -> JointInputs:
    logits = node_gradient(task.node, tile.logits, tile.teacher, tile.upcoming, *values)  # [n, V]
    into_tanh = _product(task, logits, student.kernel, transpose_b=True)  # [n, D]
    into_tanh = tf.raw_ops.TanhGrad(y=tile.hidden, dy=into_tanh)
    into_tanh = tf.reshape(into_tanh, [-1, BLOCK_FRAMES, BLOCK_COLUMNS, _sizes(student.kernel)[0]])
    row, stripe = _origin(task.grid, tile.blocks)
    return JointInputs(
        tf.tensor_scatter_nd_add(sums.encoded, row[:, None], tf.reduce_sum(into_tanh, axis=2)),
        tf.tensor_scatter_nd_add(sums.predicted, stripe[:, None], tf.reduce_sum(into_tanh, axis=1)),
        sums.kernel + _product(task, tile.hidden, logits, transpose_a=True),
        sums.bias + tf.reduce_sum(logits, axis=0),
    )


def _make_tile(task: _Task, student: JointInputs, blocks: tf.Tensor) -> _Tile:
    upcoming = tf.gather(task.upcoming, _origin(task.grid, blocks)[1])[:, None]  # [G, 1, 8]
    upcoming = tf.reshape(tf.tile(upcoming, [1, BLOCK_FRAMES, 1]), [-1])  # [n]
    return _Tile(blocks, *_join(task, student, blocks), _teacher_logits(task, blocks), upcoming)


def _teacher_logits(task: _Task, blocks: tf.Tensor) -> tf.Tensor | None:
    if task.teacher is None:
        return None
    if isinstance(task.teacher, JointInputs):
        logits = _join(task, task.teacher, blocks)[1]
    else:
        logits = _stored_logits(task.grid, task.teacher, blocks)
        mask = tf.reshape(tf.gather(task.mask, blocks), [-1, 1])
        logits = tf.where(mask, tf.cast(logits, tf.float32), 0.0)  # padding may hold NaN
    return logits if task.node.temperature == 1.0 else logits / task.node.temperature


def _join(task: _Task, inputs: JointInputs, blocks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The tanh [n, D] and the logits [n, V] of some blocks."""
    row, stripe = _origin(task.grid, blocks)
    hidden = tf.tanh(tf.gather(inputs.encoded, row)[:, :, None] + tf.gather(inputs.predicted, stripe)[:, None])
    hidden = tf.reshape(hidden, [-1, _sizes(inputs.kernel)[0]])
    return hidden, tf.nn.bias_add(_product(task, hidden, inputs.kernel), inputs.bias)


def _product(task: _Task, first: tf.Tensor, second: tf.Tensor, **transposed: bool) -> tf.Tensor:
    first, second = tf.cast(first, task.product_dtype), tf.cast(second, task.product_dtype)
    return tf.cast(tf.matmul(first, second, **transposed), tf.float32)


def _stored_logits(grid: _Grid, logits: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
    """[n, V], of its dtype; beyond the last frame and column the last one again."""
    row, stripe = _origin(grid, blocks)
    frame = (row % grid.rows)[:, None] * BLOCK_FRAMES + tf.range(BLOCK_FRAMES)  # [G, 16]
    column = (stripe % grid.stripes)[:, None] * BLOCK_COLUMNS + tf.range(BLOCK_COLUMNS)  # [G, 8]
    frame, column = tf.minimum(frame, grid.frames - 1), tf.minimum(column, grid.columns - 1)
    node = (row // grid.rows)[:, None] * grid.frames + frame  # [G, 16], the frame's place in the batch
    node = node[:, :, None] * grid.columns + column[:, None]  # [G, 16, 8]
    vocabulary = _sizes(logits)[3]
    return tf.gather(tf.reshape(logits, [-1, vocabulary]), tf.reshape(node, [-1]))


def _origin(grid: _Grid, blocks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the frames [B rows] and the columns [B stripes] of some blocks come from."""
    row = blocks // grid.stripes
    return row, row // grid.rows * grid.stripes + blocks % grid.stripes


def _listed(wanted: tf.Tensor, grid: _Grid) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Block numbers in tiles [K, G], wanted ones first; each block's place there; how many tiles hold wanted ones."""
    order = tf.argsort(tf.cast(wanted, tf.int32), direction="DESCENDING", stable=True)
    place = tf.where(wanted, tf.cumsum(tf.cast(wanted, tf.int32)) - 1, -1)
    count = tf.math.count_nonzero(wanted, dtype=tf.int32)
    tiles = tf.reshape(_padded(order, 0, grid.blocks_per_tile), [-1, grid.blocks_per_tile])
    return tiles, place, -(-count // grid.blocks_per_tile)


def _cut(inputs: JointInputs) -> JointInputs:
    """Frames [B rows, 16, D] and columns [B stripes, 8, D]."""
    encoded = _padded(inputs.encoded, 1, BLOCK_FRAMES)
    predicted = _padded(inputs.predicted, 1, BLOCK_COLUMNS)
    width = _sizes(inputs.kernel)[0]
    encoded = tf.reshape(encoded, [-1, BLOCK_FRAMES, width])
    return JointInputs(encoded, tf.reshape(predicted, [-1, BLOCK_COLUMNS, width]), inputs.kernel, inputs.bias)


def _to_blocks(values: tf.Tensor, grid: _Grid) -> tf.Tensor:
    """[B, T, U+1] to [B rows stripes, 16, 8]."""
    values = _padded(_padded(values, 1, BLOCK_FRAMES), 2, BLOCK_COLUMNS)
    values = tf.reshape(values, [grid.batch, grid.rows, BLOCK_FRAMES, grid.stripes, BLOCK_COLUMNS])
    return tf.reshape(tf.transpose(values, [0, 1, 3, 2, 4]), [-1, BLOCK_FRAMES, BLOCK_COLUMNS])


def _from_blocks(blocks: tf.Tensor, grid: _Grid) -> tf.Tensor:
    """[B rows stripes, 16, 8] to [B, T, U+1]."""
    values = tf.reshape(blocks, [grid.batch, grid.rows, grid.stripes, BLOCK_FRAMES, BLOCK_COLUMNS])
    values = tf.transpose(values, [0, 1, 3, 2, 4])
    values = tf.reshape(values, [grid.batch, grid.rows * BLOCK_FRAMES, grid.stripes * BLOCK_COLUMNS])
    return values[:, : grid.frames, : grid.columns]


def _padded(values: tf.Tensor, axis: int, multiple: int | tf.Tensor, value: float = 0) -> tf.Tensor:
    paddings = [[0, 0] for _ in values.shape]
    paddings[axis] = [0, -_sizes(values)[axis] % multiple]
    return tf.pad(values, paddings, constant_values=value)


def _sizes(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    return [tf.shape(tensor)[axis] if size is None else size for axis, size in enumerate(tensor.shape)]
