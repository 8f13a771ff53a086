"""How a lattice is cut into blocks of nodes, and blocks are put into lists."""

from typing import NamedTuple

import tensorflow as tf

BLOCK_FRAMES = 16
BLOCK_COLUMNS = 4
BLOCK_NODES = BLOCK_FRAMES * BLOCK_COLUMNS


class Grid(NamedTuple):
    """A batch of lattices in blocks: `rows` times `stripes` an utterance, `blocks_per_tile` made at a time."""

    batch: int | tf.Tensor
    frames: int | tf.Tensor
    columns: int | tf.Tensor
    rows: int | tf.Tensor
    stripes: int | tf.Tensor
    blocks_per_tile: int | tf.Tensor

    @property
    def num_tiles(self) -> int | tf.Tensor:
        """As many as hold all blocks."""
        return -(-self.batch * self.rows * self.stripes // self.blocks_per_tile)

    def cut(self, values: tf.Tensor) -> tf.Tensor:
        """[B, T, U+1] to [B rows stripes, 16, 4]."""
        values = padded(padded(values, 1, BLOCK_FRAMES), 2, BLOCK_COLUMNS)
        values = tf.reshape(values, [self.batch, self.rows, BLOCK_FRAMES, self.stripes, BLOCK_COLUMNS])
        return tf.reshape(tf.transpose(values, [0, 1, 3, 2, 4]), [-1, BLOCK_FRAMES, BLOCK_COLUMNS])

    def join(self, blocks: tf.Tensor) -> tf.Tensor:
        """[B rows stripes, 16, 4] to [B, T, U+1]."""
        values = tf.reshape(blocks, [self.batch, self.rows, self.stripes, BLOCK_FRAMES, BLOCK_COLUMNS])
        values = tf.transpose(values, [0, 1, 3, 2, 4])
        values = tf.reshape(values, [self.batch, self.rows * BLOCK_FRAMES, self.stripes * BLOCK_COLUMNS])
        return values[:, : self.frames, : self.columns]

    def origin(self, blocks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Where the frames [B rows] and the columns [B stripes] of some blocks come from."""
        row = blocks // self.stripes
        return row, row // self.rows * self.stripes + blocks % self.stripes

    def utterance(self, blocks: tf.Tensor) -> tf.Tensor:
        """Whose blocks these are."""
        return blocks // (self.rows * self.stripes)

    def listed(self, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Block numbers in tiles [K, G], wanted ones first; each one's place there; how many tiles hold wanted ones."""
        order = tf.argsort(tf.cast(wanted, tf.int32), direction="DESCENDING", stable=True)
        place = tf.where(wanted, tf.cumsum(tf.cast(wanted, tf.int32)) - 1, -1)
        count = tf.math.count_nonzero(wanted, dtype=tf.int32)
        tiles = tf.reshape(padded(order, 0, self.blocks_per_tile), [-1, self.blocks_per_tile])
        return tiles, place, -(-count // self.blocks_per_tile)


def make_grid(
    batch: int | tf.Tensor, frames: int | tf.Tensor, columns: int | tf.Tensor, nodes: int | tf.Tensor
) -> Grid:
    """Cuts a batch of lattices; a tile is as many blocks as `nodes` allows, all tiles equally full."""
    # In graphs only Python's own numbers give tiles a static shape.
    static = all(isinstance(number, int) for number in (batch, frames, columns, nodes))
    largest, least = (max, min) if static else (tf.maximum, tf.minimum)
    rows, stripes = (
        largest(1, -(-size // block)) for size, block in ((frames, BLOCK_FRAMES), (columns, BLOCK_COLUMNS))
    )
    total, at_once = largest(1, batch * rows * stripes), nodes // BLOCK_NODES
    num_tiles = -(-total // least(largest(1, at_once), total))
    return Grid(batch, frames, columns, rows, stripes, -(-total // num_tiles))


def padded(values: tf.Tensor, axis: int, multiple: int | tf.Tensor, value: float = 0) -> tf.Tensor:
    """Fills an axis up to a multiple of something, at least to one of it."""
    size = sizes(values)[axis]
    largest = max if isinstance(size, int) and isinstance(multiple, int) else tf.maximum
    paddings = [[0, 0] for _ in values.shape]
    paddings[axis] = [0, largest(size + -size % multiple, multiple) - size]
    return tf.pad(values, paddings, constant_values=value)


def sizes(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """The shape, static where it can be."""
    return [tf.shape(tensor)[axis] if size is None else size for axis, size in enumerate(tensor.shape)]
