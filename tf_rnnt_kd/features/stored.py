"""Log-mel features in 8 or 16 bits, as a record set may hold them in place of audio.

A step is a 255th or a 65535th of the range from the floor to the loudest that samples in [-1, 1] can be: nothing is
clipped, and an error is at most half a step, 0.011 (0.19 dB) or 0.00004.
"""

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.features.log_mel import FRONT_END, NUM_MEL_BINS, RANGE, log_mel

DTYPES = ("uint8", "uint16")


def describe(dtype: str) -> dict:
    """What a set's manifest says of its features: their type, and of which front end they are."""
    return {"dtype": dtype, "front_end": FRONT_END}


def front_end_changes(described: dict) -> str:
    """How the front end of `described` differs from this program's, in words; empty if it doesn't."""
    theirs = described["front_end"]
    names = [name for name in sorted({*theirs, *FRONT_END}) if theirs.get(name) != FRONT_END.get(name)]
    return ", ".join(f"{name} is {theirs.get(name)!r} there and {FRONT_END.get(name)!r} here" for name in names)


def quantise(samples: np.ndarray, dtype: str) -> np.ndarray:
    """Features of an utterance as integers.

    Args:
      samples: [S] int16, 16 kHz.
      dtype: of `DTYPES`.

    Returns:
      [N, F] of that type.
    """
    low, high = RANGE
    features = log_mel(tf.constant(samples[None] / np.float32(32_768.0), tf.float32))[0].numpy()
    return np.rint((features - low) / (high - low) * np.iinfo(dtype).max).astype(dtype)


def restore(stored: tf.Tensor) -> tf.Tensor:
    """[N * F] integers as `quantise` gave them -> [N, F] float32."""
    low, high = RANGE
    return tf.reshape(tf.cast(stored, tf.float32), [-1, NUM_MEL_BINS]) * ((high - low) / stored.dtype.max) + low
