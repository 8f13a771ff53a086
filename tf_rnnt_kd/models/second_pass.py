"""The second pass of a cascade: full context over the frames of a causal encoder."""

import keras
import tensorflow as tf

from tf_rnnt_kd.masks import length_mask, zero_padding
from tf_rnnt_kd.models.conformer import ConformerBlock, run_blocks


class SecondPass(keras.layers.Layer):
    """`num_blocks` Conformer blocks that see the whole utterance: `[B, T, D] -> [B, T, D]`.

    What a causal encoder had to say at once is said again when all has been heard (Narayanan et al. 2020, 2010.14606).
    Both outputs enter the same joint network. Memory: as that of a `ConformerEncoder` of as many blocks.

    Args:
      width: D.
      num_blocks: Conformer blocks.
      num_heads: H.
      kernel_size: frames of the depthwise convolution, half of them to come.
      dropout: at the output of every module.
      rematerialise: as in `ConformerEncoder`.
    """

    def __init__(
        self,
        width: int,
        num_blocks: int,
        num_heads: int,
        kernel_size: int,
        dropout: float = 0.1,
        rematerialise: bool = False,
        **kwargs,
    ):
        super().__init__(**{"name": "second_pass", **kwargs})
        self.width, self.num_blocks, self.num_heads, self.kernel_size = width, num_blocks, num_heads, kernel_size
        self.dropout, self.rematerialise = dropout, rematerialise
        self.blocks = [
            ConformerBlock(width, num_heads, kernel_size, dropout=dropout, name=f"block_{i}") for i in range(num_blocks)
        ]

    def build(self, frames_shape):
        for block in self.blocks:
            block.build(frames_shape)

    def call(self, frames, num_frames, training=False):
        """[B, T, D], [B] -> [B, T, D]; what comes out beyond num_frames is undefined."""
        frames = zero_padding(frames, num_frames)
        mask = length_mask(num_frames, tf.shape(frames)[1])[:, None, None, :]  # [B, 1, 1, T]
        return run_blocks(self.blocks, frames, num_frames, mask, training, self.rematerialise)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "num_blocks": self.num_blocks,
            "num_heads": self.num_heads,
            "kernel_size": self.kernel_size,
            "dropout": self.dropout,
            "rematerialise": self.rematerialise,
        }
