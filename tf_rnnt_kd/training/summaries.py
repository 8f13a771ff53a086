"""What TensorBoard shows of a run."""

import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.features.log_mel import SAMPLE_RATE

Marked = Sequence[tuple[str, str]]  # words, each with its mark: "equal", "substitute", "delete" or "insert"


class Summaries:
    """Writes numbers, texts, pictures and sound of one run into `folder`; None for one who has nothing to say.

    TensorBoard takes texts for Markdown, with links and images of other machines in them. So texts come as they are, or
    as words with marks, never as Markdown: it is made here, by `as_markdown`, which shows every letter as itself.
    """

    def __init__(self, folder: str | None):
        self._writer = tf.summary.create_file_writer(folder) if folder else tf.summary.create_noop_writer()

    def write_numbers(self, step: int, numbers: dict[str, float]) -> None:
        """One scalar chart a name."""
        with self._writer.as_default(step):
            for name, value in numbers.items():
                tf.summary.scalar(name, value)
        self._writer.flush()

    def write_table(self, step: int, name: str, header: Sequence[str], rows: Sequence[Sequence[str | Marked]]) -> None:
        """A table of texts and of marked words."""
        lines = [[as_markdown(cell) for cell in cells] for cells in (header, *rows)]
        lines.insert(1, ["---"] * len(header))
        with self._writer.as_default(step):
            tf.summary.text(name, "\n".join(f"| {' | '.join(cells)} |" for cells in lines))

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Images [H, W, 3] uint8 by their names."""
        with self._writer.as_default(step):
            for name, image in images.items():
                tf.summary.image(name, image[None])

    def write_audio(self, step: int, name: str, samples: np.ndarray, text: str) -> None:
        """[S] int16 to listen to, and what is said."""
        with self._writer.as_default(step):
            sound = (samples / 32768.0).astype(np.float32)
            tf.summary.audio(name, sound[None, :, None], SAMPLE_RATE, description=as_markdown(text))

    def write_settings(self, settings: dict[str, bool | int | float | str]) -> None:
        """A row of the HParams page, which has the newest value of each scalar too."""
        from tensorboard.plugins.hparams import api  # late: only the chief of a new run needs it

        with self._writer.as_default(0):
            api.hparams(settings)  # without a list of columns: TensorBoard would take one run's for all

    def write_spectrograms(self, step: int, before: tf.Tensor, after: tf.Tensor) -> None:
        """Log-mel features [B, N, F] of up to three utterances, without and with SpecAugment."""
        with self._writer.as_default(step):
            for name, features in (("features/before", before), ("features/after_spec_augment", after)):
                image = np.flip(np.swapaxes(np.asarray(features), 1, 2), 1)[..., None]  # low bands at the bottom
                tf.summary.image(name, np.clip(image / 4.0 + 0.5, 0.0, 1.0), max_outputs=3)


def as_markdown(text: str | Marked) -> str:
    """Markdown that shows a text, in one line, or marked words.

    Of these, what was replaced is bold, what is missing struck through, what is too much in italics. Struck through
    letter by letter, with U+0336: TensorBoard's Markdown has nothing for it.
    """
    if isinstance(text, str):
        return _escape(text)
    return " ".join(_MARKS[kind](word) for word, kind in text)


def _escape(text: str) -> str:
    """No letter but of words and single spaces stays as it is: a line break, or four spaces, would be Markdown too."""
    return re.sub(r"[^\w ]|_", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


_MARKS = {
    "equal": _escape,
    "substitute": lambda word: f"**{_escape(word)}**",
    "delete": lambda word: "".join(f"{_escape(letter)}\u0336" for letter in word),
    "insert": lambda word: f"*+{_escape(word)}*",
}
