"""What TensorBoard shows of a run."""

import numpy as np
import tensorflow as tf


class Summaries:
    """Writes numbers, texts and pictures of one run into `folder`; None for one who has nothing to say."""

    def __init__(self, folder: str | None):
        self._writer = tf.summary.create_file_writer(folder) if folder else tf.summary.create_noop_writer()

    def write_numbers(self, step: int, numbers: dict[str, float]) -> None:
        """One scalar chart a name."""
        with self._writer.as_default(step):
            for name, value in numbers.items():
                tf.summary.scalar(name, value)
        self._writer.flush()

    def write_text(self, step: int, name: str, rows: list[tuple[str, str]]) -> None:
        """A table of reference and hypothesis."""
        table = ["| reference | hypothesis |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
        with self._writer.as_default(step):
            tf.summary.text(name, "\n".join(table))

    def write_spectrograms(self, step: int, before: tf.Tensor, after: tf.Tensor) -> None:
        """Log-mel features [B, N, F] of up to three utterances, without and with SpecAugment."""
        with self._writer.as_default(step):
            for name, features in (("features/before", before), ("features/after_spec_augment", after)):
                image = np.flip(np.swapaxes(np.asarray(features), 1, 2), 1)[..., None]  # low bands at the bottom
                tf.summary.image(name, np.clip(image / 4.0 + 0.5, 0.0, 1.0), max_outputs=3)
