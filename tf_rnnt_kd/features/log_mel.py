"""Log-mel features of 16 kHz speech."""

import math

import tensorflow as tf

SAMPLE_RATE = 16_000  # Hz
FRAME_LENGTH = 400  # samples, 25 ms
FRAME_STEP = 160  # samples, 10 ms
NUM_MEL_BINS = 80
# One fixed scale in place of per-utterance statistics, which a streaming student cannot know. The values bring the
# log-energies of levelled speech to about zero mean and unit variance.
_LOG_FLOOR = 1e-5
_MEAN, _DEVIATION = -4.0, 4.0
_FFT_LENGTH = 512
_LOWEST, _HIGHEST = 20.0, 7_600.0  # Hz
# The least that a feature can be, and more than the most: by Parseval a frame of samples in [-1, 1] has half of
# 512 * sum(hann^2) = 512 * 150 on this side of the spectrum, and a triangle lets pass no more than all of it.
RANGE = (math.log(_LOG_FLOOR) - _MEAN) / _DEVIATION, (math.log(_FFT_LENGTH * 150 / 2) - _MEAN) / _DEVIATION
# All that features depend on besides the samples.
FRONT_END = {
    "sample_rate": SAMPLE_RATE,
    "frame_length": FRAME_LENGTH,
    "frame_step": FRAME_STEP,
    "window": "hann",
    "fft_length": _FFT_LENGTH,
    "num_mel_bins": NUM_MEL_BINS,
    "mel_hz": [_LOWEST, _HIGHEST],
    "log_floor": _LOG_FLOOR,
    "mean": _MEAN,
    "deviation": _DEVIATION,
}


def num_log_mel_frames(num_samples):
    """`N = max(0, 1 + floor((S - 400) / 160))`, for a Python integer, an array or a tensor of sample counts."""
    frames = (num_samples - FRAME_LENGTH) // FRAME_STEP + 1
    return frames * (frames > 0) if not tf.is_tensor(frames) else tf.maximum(frames, 0)


def mel_matrix() -> tf.Tensor:
    """What pools a spectrum of 257 bins to 80 mel bins: triangles from 20 to 7600 Hz, [257, 80]."""
    return tf.signal.linear_to_mel_weight_matrix(NUM_MEL_BINS, _FFT_LENGTH // 2 + 1, SAMPLE_RATE, _LOWEST, _HIGHEST)


def log_mel(samples: tf.Tensor, matrix: tf.Tensor | None = None) -> tf.Tensor:
    """Frames, windows (Hann), transforms and pools to 80 mel bins: `(log max(E_mel, 1e-5) + 4) / 4`.

    Frame n covers samples [160 n, 160 n + 400) and no others, so that chunks of samples give the frames that the whole
    utterance gives. Memory: about 1 kB a frame for the spectrum.

    Args:
      samples: [B, S] float32 in [-1, 1], 16 kHz.
      matrix: that of `mel_matrix`, where a graph has it already.

    Returns:
      [B, N, 80] float32, one frame every 10 ms.
    """
    frames = tf.signal.frame(samples, FRAME_LENGTH, FRAME_STEP)  # [B, N, 400]
    windowed = frames * tf.signal.hann_window(FRAME_LENGTH)
    # Padded here: `rfft` does not pad where there is no frame, and then refuses the length.
    spectrum = tf.signal.rfft(tf.pad(windowed, [[0, 0], [0, 0], [0, _FFT_LENGTH - FRAME_LENGTH]]))  # [B, N, 257]
    power = tf.square(tf.math.real(spectrum)) + tf.square(tf.math.imag(spectrum))
    energy = tf.matmul(power, mel_matrix() if matrix is None else matrix)  # [B, N, 80]
    return (tf.math.log(tf.maximum(energy, _LOG_FLOOR)) - _MEAN) / _DEVIATION
