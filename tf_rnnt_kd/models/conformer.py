"""The Conformer encoder, full-context or causal."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_rnnt_kd.masks import length_mask, zero_padding
from tf_rnnt_kd.models.attention import RotaryAttention
from tf_rnnt_kd.models.streams import last_frames
from tf_rnnt_kd.models.subsampling import REDUCTION, Subsampling
from tf_rnnt_kd.options import Count, CountOrZero, FractionBelowOne, checked


def drop(inputs: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Dropout whose mask depends on its seed alone; none without a seed.

    Args:
      inputs: [...] floating.
      rate: share of the inputs that becomes 0; the rest is divided by 1 - rate.
      seed: [2] integer, or None.
    """
    return inputs if seed is None else tf.nn.experimental.stateless_dropout(inputs, rate, tf.cast(seed, tf.int32))


class FeedForward(keras.layers.Layer):
    """`dropout(W2 swish(W1 LayerNorm(x)))`, inner width 4 D."""

    def __init__(self, width: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.dropout = width, dropout
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5, name="norm")
        self.expand = keras.layers.Dense(4 * width, activation="swish", name="expand")
        self.contract = keras.layers.Dense(width, name="contract")
        self.seeds = keras.random.SeedGenerator() if dropout else None

    def build(self, inputs_shape):
        self.norm.build((None, None, self.width))
        self.expand.build((None, None, self.width))
        self.contract.build((None, None, 4 * self.width))

    def call(self, inputs, seed=None):
        rows = tf.reshape(inputs, [-1, self.width])
        rows = self.contract(self.expand(self.norm(rows)))
        return drop(tf.reshape(rows, tf.shape(inputs)), self.dropout, seed)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "dropout": self.dropout}


class Convolution(keras.layers.Layer):
    """`dropout(pointwise(swish(LayerNorm(depthwise(GLU(pointwise(LayerNorm(x))))))))`.

    LayerNorm stands where Gulati et al. use batch norm: the same arithmetic offline, streaming, on one replica or many.
    A causal convolution is padded on its left only.
    """

    def __init__(self, width: int, kernel_size: int, causal: bool = False, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.kernel_size, self.causal, self.dropout = width, kernel_size, causal, dropout
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5, name="norm")
        self.expand = keras.layers.Dense(2 * width, name="expand")
        self.depthwise = keras.layers.DepthwiseConv1D(kernel_size, name="depthwise")
        self.inner_norm = keras.layers.LayerNormalization(epsilon=1e-5, name="inner_norm")
        self.contract = keras.layers.Dense(width, name="contract")
        self.seeds = keras.random.SeedGenerator() if dropout else None

    def build(self, inputs_shape):
        for layer in (self.norm, self.expand, self.depthwise, self.inner_norm, self.contract):
            layer.build((None, None, self.width))

    def call(self, inputs, num_frames, seed=None):
        """[B, T, D], [B] -> [B, T, D]."""
        left = self.kernel_size - 1 if self.causal else (self.kernel_size - 1) // 2
        gated = zero_padding(self._gate(inputs), num_frames)
        padded = tf.pad(gated, [[0, 0], [left, self.kernel_size - 1 - left], [0, 0]])  # [B, T+k-1, D]
        return drop(self._mix(padded), self.dropout, seed)

    def stream(self, inputs, cache, num_frames=None):
        """[B, n, D], the last k - 1 gated frames [B, k-1, D], [B] -> [B, n, D] and the next cache."""
        gated = tf.concat([cache, self._gate(inputs)], axis=1)  # [B, k-1+n, D]
        return self._mix(gated), last_frames(gated, self.kernel_size - 1, num_frames)

    def _gate(self, inputs):
        rows = self.expand(self.norm(tf.reshape(inputs, [-1, self.width])))  # [B T, 2 D]
        value, gate = tf.split(rows, 2, axis=-1)
        return tf.reshape(value * tf.sigmoid(gate), tf.shape(inputs))

    def _mix(self, padded):
        mixed = self.depthwise(padded)
        rows = self.contract(tf.nn.silu(self.inner_norm(tf.reshape(mixed, [-1, self.width]))))
        return tf.reshape(rows, tf.shape(mixed))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "kernel_size": self.kernel_size,
            "causal": self.causal,
            "dropout": self.dropout,
        }


class ConformerBlock(keras.layers.Layer):
    """Gulati et al. 2020 (2005.08100), section 2.

    x = x + 1/2 FFN(x)
    x = x + MHSA(LayerNorm(x))
    x = x + Conv(x)
    y = LayerNorm(x + 1/2 FFN(x))
    """

    def __init__(self, width, num_heads, kernel_size, causal=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.num_heads, self.kernel_size = width, num_heads, kernel_size
        self.causal, self.dropout = causal, dropout
        self.feed_forward_in = FeedForward(width, dropout, name="feed_forward_in")
        self.attention_norm = keras.layers.LayerNormalization(epsilon=1e-5, name="attention_norm")
        self.attention = RotaryAttention(width, num_heads, name="attention")
        self.seeds = keras.random.SeedGenerator() if dropout else None
        self.convolution = Convolution(width, kernel_size, causal, dropout, name="convolution")
        self.feed_forward_out = FeedForward(width, dropout, name="feed_forward_out")
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5, name="norm")

    def build(self, inputs_shape):
        shape = (None, None, self.width)
        for layer in (self.feed_forward_in, self.attention_norm, self.attention, self.convolution):
            layer.build(shape)
        self.feed_forward_out.build(shape)
        self.norm.build(shape)

    def draw_seeds(self):
        """The next dropout seed of each module, drawn apart from `call` so that calling again drops the same again."""
        dropped = (self.feed_forward_in, self, self.convolution, self.feed_forward_out)
        return [layer.seeds.next() for layer in dropped] if self.dropout else None

    def call(self, inputs, num_frames, mask, seeds=None):
        """[B, T, D], [B], as in `RotaryAttention` -> [B, T, D]; in training with what `draw_seeds` gave."""
        seeds = seeds or [None] * 4
        x = inputs + 0.5 * self.feed_forward_in(inputs, seeds[0])
        x = x + drop(self.attention(self.attention_norm(x), mask), self.dropout, seeds[1])
        x = x + self.convolution(x, num_frames, seeds[2])
        return self.norm(x + 0.5 * self.feed_forward_out(x, seeds[3]))

    def stream(self, inputs, state, positions, mask, num_frames=None):
        """[B, n, D], (keys, values, gated frames), as in `RotaryAttention` -> [B, n, D], state, as `call` computes."""
        key, value, gated = state
        x = inputs + 0.5 * self.feed_forward_in(inputs)
        attended, (key, value) = self.attention.stream(
            self.attention_norm(x), (key, value), positions, mask, num_frames
        )
        x = x + attended
        convolved, gated = self.convolution.stream(x, gated, num_frames)
        x = x + convolved
        return self.norm(x + 0.5 * self.feed_forward_out(x)), (key, value, gated)

    def initial_state(self, batch_size, left_context):
        """Empty caches: [B, H, left_context, D/H] twice and [B, k-1, D]."""
        heads = [batch_size, self.num_heads, left_context, self.width // self.num_heads]
        gated = [batch_size, self.kernel_size - 1, self.width]
        return tuple(tf.zeros(shape, self.compute_dtype) for shape in (heads, heads, gated))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "num_heads": self.num_heads,
            "kernel_size": self.kernel_size,
            "causal": self.causal,
            "dropout": self.dropout,
        }


def run_blocks(
    blocks: Sequence[ConformerBlock],
    frames: tf.Tensor,
    num_frames: tf.Tensor,
    mask: tf.Tensor,
    training: bool,
    rematerialise: bool,
) -> tf.Tensor:
    """Whole utterances through blocks, one after the other.

    Args:
      blocks: applied in turn.
      frames: [B, T, D].
      num_frames: [B] integer.
      mask: as in `RotaryAttention`, of all blocks.
      training: whether modules drop.
      rematerialise: as in `ConformerEncoder`.

    Returns:
      [B, T, D].
    """
    for block in blocks:
        seeds = block.draw_seeds() if training else None

        def apply(frames, block=block, seeds=seeds):
            return block(frames, num_frames, mask, seeds)

        frames = (tf.recompute_grad(apply) if training and rematerialise else apply)(frames)
    return frames


@checked
class ConformerEncoder(keras.layers.Layer):
    """Subsampling and `num_blocks` Conformer blocks: `[B, 4T, F] -> [B, T, D]`.

    With `causal=True` attention shows frame t the frames t - left_context … t and those after it in its chunk, the
    convolutions nothing later; such an encoder streams with a state of fixed size, in O(T · context), and its chunked
    output equals its offline output. Look-ahead does not add up over blocks: all of them wait for the same chunk.

    Args:
      width: D.
      num_blocks: Conformer blocks.
      num_heads: H.
      kernel_size: frames of the depthwise convolution.
      causal: whether the encoder streams.
      left_context: encoder frames of 40 ms that attention looks back.
      dropout: at the output of every module.
      chunk: frames that see each other; up to chunk - 1 frames of look-ahead, 1 for a strictly causal encoder.
      training_chunks: in training each batch draws its chunk from these, so that one model serves several latencies.
      rematerialise: in training, keep the inputs of blocks only and compute their insides again for the gradient:
        memory of one block in place of all, for about a third more time.
      subsampling_channels: of the convolutions that make frames; None for D.
    """

    def __init__(
        self,
        width: Count,
        num_blocks: CountOrZero,
        num_heads: Count,
        kernel_size: Count,
        causal: bool = False,
        left_context: CountOrZero | None = None,
        dropout: FractionBelowOne = 0.1,
        chunk: Count = 1,
        training_chunks: Sequence[Count] = (),
        rematerialise: bool = False,
        subsampling_channels: Count | None = None,
        **kwargs,
    ):
        super().__init__(**{"name": "encoder", **kwargs})
        self.chunk, self.training_chunks, self.rematerialise = chunk, tuple(training_chunks), rematerialise
        self._check(causal, left_context)
        self.width, self.num_blocks, self.num_heads, self.kernel_size = width, num_blocks, num_heads, kernel_size
        self.causal, self.left_context, self.dropout = causal, left_context, dropout
        self.subsampling = Subsampling(width, subsampling_channels, dropout, name="subsampling")
        self.blocks = [
            ConformerBlock(width, num_heads, kernel_size, causal, dropout, name=f"block_{i}") for i in range(num_blocks)
        ]
        if training_chunks:
            self.seeds = keras.random.SeedGenerator()

    def _check(self, causal, left_context):
        chunks = (self.chunk, *self.training_chunks)
        if causal and left_context is None:
            raise ValueError("a causal encoder needs left_context, the frames of 40 ms that attention may look back")
        if chunks != (1,) and not causal:
            raise ValueError("chunk and training_chunks are of a causal encoder: full context has no chunks")
        if any(max(chunks) % chunk for chunk in chunks):
            raise ValueError(f"chunk and training_chunks {chunks} must divide the largest of them")

    def build(self, features_shape):
        self.subsampling.build(features_shape)
        for block in self.blocks:
            block.build((None, None, self.width))

    def call(self, features, num_features, training=False):
        """[B, 4T, F], [B] -> [B, T, D]; frames at and beyond num_features // 4 are undefined."""
        num_frames = num_features // REDUCTION
        frames = self.subsampling(features, num_features, training=training)  # [B, T, D]
        mask = self._offline_mask(num_frames, tf.shape(frames)[1], training)
        return run_blocks(self.blocks, frames, num_frames, mask, training, self.rematerialise)

    def initial_state(self, batch_size) -> tuple[tf.Tensor, ...]:
        """Flat tuple: frames seen [B] int32 (runs over after years), two of the subsampling, three of each block."""
        state = [tf.zeros([batch_size], tf.int32), *self.subsampling.initial_state(batch_size)]
        for block in self.blocks:
            state.extend(block.initial_state(batch_size, self.left_context))
        return tuple(state)

    def stream(self, features, state, num_frames=None):
        """The next frames of B sessions, each in its own place: [B, 4n, F], state, [B] -> [B, n, D], state.

        A row has `num_frames` real frames, 0 to n, None for n: a multiple of `chunk`, but at its end. What lies beyond
        may hold anything finite, and what comes out there is undefined. n may be 0.
        """

        def nothing():
            return tf.zeros([tf.shape(features)[0], 0, self.width], self.compute_dtype), tuple(state)

        # Convolutions over less than their kernel are not defined: with oneDNN, TensorFlow 2.21 gives back the input.
        return tf.cond(tf.shape(features)[1] > 0, lambda: self._advance(features, state, num_frames), nothing)

    def _advance(self, features, state, num_frames):
        seen, subsampled, caches = state[0], state[1:3], state[3:]
        frames, subsampled = self.subsampling.stream(features, subsampled, num_frames)  # [B, n, D]
        mask = self._stream_mask(seen, tf.shape(frames)[1], num_frames)
        positions = seen[:, None] + tf.range(tf.shape(frames)[1])  # [B, n]
        moved = []
        for block, cache in zip(self.blocks, zip(*[iter(caches)] * 3, strict=True), strict=True):
            frames, cache = block.stream(frames, cache, positions, mask, num_frames)
            moved.extend(cache)
        num_new = tf.shape(frames)[1] if num_frames is None else num_frames
        return frames, (seen + num_new, *subsampled, *moved)

    def _offline_mask(self, num_frames, max_frames, training):
        if not self.causal:
            return length_mask(num_frames, max_frames)[:, None, None, :]  # [B, 1, 1, T]
        # Blocks hold whole chunks. The smaller they are, the less of what a block sees is hidden from its frames.
        largest = max((self.chunk, *self.training_chunks))
        size = largest * max(1, self.left_context // (4 * largest))
        past = -(-self.left_context // size) * size
        key = tf.range(-past, size)  # [W], counted from the start of the block
        frame = tf.range(-(-max_frames // size))[:, None] * size + key  # [K, W]
        real = (frame >= 0) & (frame < tf.cast(num_frames, tf.int32)[:, None, None])  # [B, K, W]
        window = self._window(tf.range(size)[:, None], key, self._draw_chunk() if training else self.chunk)  # [S, W]
        return (real[:, :, None] & window)[:, None]  # [B, 1, K, S, W]

    def _stream_mask(self, seen, num_new, num_frames):
        key = tf.range(-self.left_context, num_new)  # [C+n], counted from the start of the new frames
        window = self._window(tf.range(num_new)[:, None], key, self.chunk)  # [n, C+n]
        real = key >= -seen[:, None]  # [B, C+n]
        if num_frames is not None:
            real &= key < num_frames[:, None]
        return (real[:, None] & window)[:, None]  # [B, 1, n, C+n]

    def _window(self, query, key, chunk):
        return (key >= query - self.left_context) & (key < (query // chunk + 1) * chunk)

    def _draw_chunk(self):
        if not self.training_chunks:
            return self.chunk
        seed = tf.cast(self.seeds.next(), tf.int32)
        drawn = tf.random.stateless_uniform([], seed, maxval=len(self.training_chunks), dtype=tf.int32)
        return tf.gather(tf.constant(self.training_chunks), drawn)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "num_blocks": self.num_blocks,
            "num_heads": self.num_heads,
            "kernel_size": self.kernel_size,
            "causal": self.causal,
            "left_context": self.left_context,
            "dropout": self.dropout,
            "chunk": self.chunk,
            "training_chunks": list(self.training_chunks),
            "rematerialise": self.rematerialise,
            "subsampling_channels": self.subsampling.channels,
        }
