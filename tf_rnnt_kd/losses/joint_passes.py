"""The two passes over a lattice's tiles: arcs and divergences, then gradients.

In the first pass the list of blocks holds those with nodes of an utterance; in the second, those with a node whose
gradient counts. So neither padding nor the corners that no alignment reaches cost a product.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import distillation, joint_tiles
from tf_rnnt_kd.losses.blocks import BLOCK_COLUMNS, BLOCK_FRAMES, BLOCK_NODES, sizes
from tf_rnnt_kd.losses.joint_tiles import JointInputs, Task, Tile, cleaned, cut, make_task
from tf_rnnt_kd.losses.nodes import NodeDivergence, NodeTask, node_divergence, node_gradient, node_values

# Nodes whose gradient is smaller than this share of their utterance's largest are left out. A lattice of 2^16 of them
# would change a sum by less than float32 rounds it.
NEGLIGIBLE = 2.0**-40


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


class ArcTerms(NamedTuple):
    """What `joint_total` learns from the arcs of a batch.

    Attributes:
      total: scalar float32, what depends on the arcs.
      weight: [B, T, U+1] float32, of each node's divergence in the total; None without a teacher.
      others: anything else, handed through.
    """

    total: tf.Tensor
    weight: tf.Tensor | None
    others: object


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
    student = cleaned(student, num_frames, num_labels)
    utterances = labels, num_frames, num_labels
    node = NodeTask(blank_id, temperature, divergence)
    task = make_task(student, teacher, utterances, node, frames_per_tile, product_dtype)

    @tf.custom_gradient
    def nodes(*tensors: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        blocks = cut(JointInputs(*tensors))
        values, visited = _first_pass(task, blocks, 1)
        first = visited.kept(tf.range(task.grid.blocks_per_tile))  # a list of tensors cannot leave what XLA compiles
        visited = visited._replace(kept=functools.partial(tf.gather, first))

        def gradient(*upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tuple(_second_pass(task, blocks, visited, upstream, ()).gradient)

        return tuple(_in_lattice(task, values)), gradient

    log_blank, log_label, divergences = nodes(*student)
    return LatticeNodes(log_blank, log_label[:, :, :-1], divergences)


def joint_total(
    student: JointInputs,
    teacher: JointInputs | tf.Tensor | None,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    of_arcs: Callable[[tf.Tensor, tf.Tensor], ArcTerms],
    *,
    blank_id: int = 0,
    divergence: NodeDivergence = distillation.LATTICE,
    temperature: float = 1.0,
    frames_per_tile: int | None = None,
    product_dtype: str = "float32",
) -> tuple[tf.Tensor, tf.Tensor, object]:
    """A sum of losses whose weights are known: its gradient is made where its value is.

    `total = of_arcs(log_blank, log_label).total + sum over nodes of weight divergence`. The gradient by the arcs is
    known after the first pass, that by a divergence is its weight; so the second pass makes the divergences and all
    gradients at once, and no pass is left for later: every value of the teacher is made once. As many of the student's
    logits as `joint_tiles.KEPT_FLOATS` allows are kept for it, one tile where the caller gives its size. That leaves
    three products a node of four, with a teacher four of six. Whoever wants no gradient pays for it all the same.

    Args:
      student: as in `joint_nodes`.
      teacher: as in `joint_nodes`.
      labels: [B, U] integer.
      num_frames: [B] integer.
      num_labels: [B] integer.
      of_arcs: from log_blank [B, T, U+1] and log_label [B, T, U] to `ArcTerms`.
      blank_id: as in `joint_nodes`, like all that follow.
      divergence: of teacher and student at a node.
      temperature: for the divergence.
      frames_per_tile: in whole blocks.
      product_dtype: of the products.

    Returns:
      (total, scalar float32, with gradient to `student`; weighted divergences [B] float32; `ArcTerms.others`), the last
      two without gradient.
    """
    inputs = [tf.convert_to_tensor(values) for values in student]
    student = cleaned(JointInputs(*map(tf.stop_gradient, inputs)), num_frames, num_labels)
    utterances = labels, num_frames, num_labels
    node = NodeTask(blank_id, temperature, divergence)
    task = make_task(student, teacher, utterances, node, frames_per_tile, product_dtype)
    blocks = cut(student)
    kept_tiles = joint_tiles.tiles_kept(task.grid, sizes(student.kernel)[1]) if frames_per_tile is None else 1
    values, visited = _first_pass(task._replace(teacher=None), blocks, kept_tiles)
    log_blank, log_label = _in_lattice(task, values[:2])
    arcs = log_blank, log_label[:, :, :-1]
    with tf.GradientTape() as tape:
        tape.watch(arcs)
        terms = of_arcs(*arcs)
    blank, label = tape.gradient(terms.total, arcs, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    weight = tf.zeros_like(blank) if terms.weight is None else tf.stop_gradient(terms.weight)
    label = tf.pad(label, [[0, 0], [0, 0], [0, 1]])
    sums = _second_pass(task, blocks, visited, (blank, label, weight), tf.zeros_like(num_frames, tf.float32))
    value = terms.total + tf.reduce_sum(sums.divergence)

    @tf.custom_gradient
    def total(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tuple(tf.cast(upstream * g, x.dtype) for g, x in zip(sums.gradient, inputs, strict=True))

        return tf.identity(value), gradient

    return total(*inputs), sums.divergence, tf.nest.map_structure(tf.stop_gradient, terms.others)


def _in_lattice(task: Task, values: list[tf.Tensor]) -> list[tf.Tensor]:
    """[B rows stripes, 16, 4] to [B, T, U+1], 0 in padding."""
    return [task.grid.join(tf.where(task.mask, blocks, 0.0)) for blocks in values]


class _Visited(NamedTuple):
    """What the first pass leaves for the gradient.

    Attributes:
      kept: from places [G] in its list, below `num_kept`, to the logits of these blocks, [G, 16 * 4 * V].
      num_kept: how many blocks at the head of the list have theirs kept.
      place: [B rows stripes] int32, where each block stood in the list, -1 for not.
    """

    kept: Callable[[tf.Tensor], tf.Tensor]
    num_kept: int | tf.Tensor
    place: tf.Tensor


class _Sums(NamedTuple):
    """What the second pass adds up: gradients by the four inputs; weighted divergences [B], () where nobody asks."""

    gradient: JointInputs
    divergence: tf.Tensor | tuple[()]


def _first_pass(task: Task, student: JointInputs, kept_tiles: int | tf.Tensor) -> tuple[list[tf.Tensor], _Visited]:
    """log_blank, log_label and divergence, [B rows stripes, 16, 4] each."""
    tiles, place, count = task.grid.listed(tf.reduce_any(task.mask, axis=[1, 2]))
    count = tf.maximum(count, 1)  # of a batch without any frame too, for the shapes
    at_once = task.grid.blocks_per_tile
    num_kept, row = kept_tiles * at_once, BLOCK_NODES * sizes(student.kernel)[1]

    def make(index: tf.Tensor, array: tf.TensorArray) -> tuple[tf.TensorArray, tf.Tensor]:
        tile = joint_tiles.make_tile(task, student, tiles[index])
        values = tf.stack(node_values(task.node, tile.logits, tile.teacher, tile.upcoming))  # [3, n]
        return array.write(index, tf.reshape(values, [3, -1, BLOCK_FRAMES, BLOCK_COLUMNS])), tile.logits

    def keep(index: tf.Tensor, array: tf.TensorArray, kept: tf.TensorArray) -> tuple:
        array, logits = make(index, array)
        return index + 1, array, _write_rows(kept, index * at_once, tf.reshape(logits, [-1, row]))

    def pass_by(index: tf.Tensor, array: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return index + 1, make(index, array)[0]

    array = tf.TensorArray(tf.float32, tf.shape(tiles)[0])
    # A list of blocks: TensorFlow copies the whole of a tensor for every update of a part in a loop.
    kept = tf.TensorArray(tf.float32, num_kept, element_shape=[row], clear_after_read=False)
    within = tf.minimum(count, kept_tiles)
    index, array, kept = tf.while_loop(lambda index, *_: index < within, keep, (0, array, kept), parallel_iterations=1)
    array = tf.while_loop(lambda index, _: index < count, pass_by, (index, array), parallel_iterations=1)[1]
    values = tf.transpose(array.stack(), [1, 0, 2, 3, 4])  # [3, K, G, 16, 4]
    values = tf.reshape(values, [3, -1, BLOCK_FRAMES, BLOCK_COLUMNS])
    values = tf.unstack(tf.gather(values, tf.maximum(place, 0), axis=1))  # not on the list: anything
    return values, _Visited(kept.gather, num_kept, place)


def _write_rows(array: tf.TensorArray, start: tf.Tensor, rows: tf.Tensor) -> tf.TensorArray:
    """`array.scatter`, which XLA does not have."""

    def write(index: tf.Tensor, array: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return index + 1, array.write(start + index, rows[index])

    count = tf.shape(rows)[0]
    return tf.while_loop(lambda index, _: index < count, write, (0, array), parallel_iterations=1)[1]


def _second_pass(
    task: Task,
    student: JointInputs,
    visited: _Visited,
    upstream: tuple[tf.Tensor, ...],
    divergence: tf.Tensor | tuple[()],
) -> _Sums:
    """Gradients by encoded [B, T, D], predicted [B, U+1, D], kernel and bias; divergences added to `divergence`.

    Upstream, [B, T, U+1] each, are the gradients by log_blank, log_label and divergence; the last is its weight.
    """
    grid = task.grid
    # What lies in padding has no gradient, whatever a caller adds up.
    upstream = [tf.where(task.mask, grid.cut(values), 0.0) for values in upstream]
    upstream = tf.stack(upstream)  # [3, B rows stripes, 16, 4]
    size = tf.abs(upstream)
    size = tf.where(tf.math.is_nan(size), float("inf"), size)  # a maximum may pass over NaN, which must stay visible
    largest = tf.reduce_max(size, axis=[0, 2, 3])  # [B rows stripes]
    limit = NEGLIGIBLE * tf.reduce_max(tf.reshape(largest, [grid.batch, -1]), axis=1, keepdims=True)  # [B, 1]
    limit = tf.reshape(tf.broadcast_to(limit, [grid.batch, grid.rows * grid.stripes]), [-1])
    wanted = (largest > limit) | tf.math.is_inf(largest)
    kept = (visited.place >= 0) & (visited.place < visited.num_kept)

    def again(blocks: tf.Tensor) -> Tile:
        place = tf.gather(visited.place, blocks)
        logits = visited.kept(tf.where((place >= 0) & (place < visited.num_kept), place, 0))  # of fillers anything
        return joint_tiles.tile_again(task, student, blocks, tf.reshape(logits, [-1, sizes(student.kernel)[1]]))

    def anew(blocks: tf.Tensor) -> Tile:
        return joint_tiles.make_tile(task, student, blocks)

    sums = _Sums(JointInputs(*map(tf.zeros_like, student)), divergence)
    for make, blocks in (again, wanted & kept), (anew, wanted & ~kept):
        sums = _over_list(task, student, make, blocks, upstream, sums)
    width = sizes(student.kernel)[0]
    encoded, predicted = (tf.reshape(values, [grid.batch, -1, width]) for values in sums.gradient[:2])
    gradient = sums.gradient._replace(encoded=encoded[:, : grid.frames], predicted=predicted[:, : grid.columns])
    return sums._replace(gradient=gradient)


def _over_list(
    task: Task,
    student: JointInputs,
    make: Callable[[tf.Tensor], Tile],
    wanted: tf.Tensor,
    upstream: tf.Tensor,
    sums: _Sums,
) -> _Sums:
    """Adds what the wanted blocks give; upstream is [3, B rows stripes, 16, 4]."""
    tiles, place, count = task.grid.listed(wanted)
    kernel_transposed = tf.transpose(student.kernel)  # a product with it as it is costs a third more on CPUs

    def add(index: tf.Tensor, sums: _Sums) -> tuple[tf.Tensor, _Sums]:
        tile = make(tiles[index])
        # The last tile is filled up with blocks that are not on the list, or are there already.
        at_once = task.grid.blocks_per_tile
        listed = tf.gather(place, tile.blocks) == index * at_once + tf.range(at_once)
        own = tf.where(listed[:, None, None], tf.gather(upstream, tile.blocks, axis=1), 0.0)  # [3, G, 16, 4]
        own = tf.unstack(tf.reshape(own, [3, -1]))
        gradient = _add_gradient(task, kernel_transposed, sums.gradient, tile, own)
        return index + 1, _Sums(gradient, _add_divergence(task, sums.divergence, tile, own[2]))

    return tf.while_loop(lambda index, _: index < count, add, (0, sums), parallel_iterations=1)[1]


def _add_divergence(task: Task, sums: tf.Tensor | tuple[()], tile: Tile, weight: tf.Tensor) -> tf.Tensor | tuple[()]:
    if tile.teacher is None or not tf.is_tensor(sums):
        return sums
    nodes = node_divergence(task.node, tile.logits, tile.teacher, tile.upcoming)
    nodes = tf.math.multiply_no_nan(nodes, weight)  # fillers may hold anything
    return tf.tensor_scatter_nd_add(
        sums, task.grid.utterance(tile.blocks)[:, None], tf.reduce_sum(tf.reshape(nodes, [-1, BLOCK_NODES]), axis=1)
    )


def _add_gradient(
    task: Task,
    kernel_transposed: tf.Tensor,
    sums: JointInputs,
    tile: Tile,
    upstream: list[tf.Tensor],
) -> JointInputs:
    logits = node_gradient(task.node, tile.logits, tile.teacher, tile.upcoming, *upstream)  # [n, V]
    into_tanh = joint_tiles.product(task, logits, kernel_transposed)  # [n, D]
    into_tanh = tf.raw_ops.TanhGrad(y=tile.hidden, dy=into_tanh)
    into_tanh = tf.reshape(into_tanh, [-1, BLOCK_FRAMES, BLOCK_COLUMNS, sizes(tile.hidden)[1]])
    row, stripe = task.grid.origin(tile.blocks)
    return JointInputs(
        tf.tensor_scatter_nd_add(sums.encoded, row[:, None], tf.reduce_sum(into_tanh, axis=2)),
        tf.tensor_scatter_nd_add(sums.predicted, stripe[:, None], tf.reduce_sum(into_tanh, axis=1)),
        sums.kernel + joint_tiles.product(task, tile.hidden, logits, transpose_a=True),
        sums.bias + tf.reduce_sum(logits, axis=0),
    )
