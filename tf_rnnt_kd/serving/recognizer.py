"""Callers for exports: audio in, transcripts out."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import num_log_mel_frames
from tf_rnnt_kd.files import Missing
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.serving.export_folder import Metadata, read_metadata, verify
from tf_rnnt_kd.serving.lite_model import LITE_FILE
from tf_rnnt_kd.serving.memory_needs import check_memory, too_long
from tf_rnnt_kd.serving.rows import LOST, LOUDEST, NOT_FINITE, TOO_LOUD
from tf_rnnt_kd.serving.streaming_module import OVERLAP, SAMPLES_PER_FRAME
from tf_rnnt_kd.text.transcript import Transcript


class Recognizer:
    """Calls a SavedModel.

    Args:
      folder: of the export.

    Raises:
      UserError: if there is no export, or one that this version does not read.
    """

    def __init__(self, folder: str):
        self._metadata = _open(folder, "saved_model")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # TensorFlow warns that gradients are missing, which no caller wants
        try:
            with _plain_path(folder) as path:
                self._loaded = tf.saved_model.load(path)
        except (OSError, tf.errors.OpError, ValueError) as error:
            raise _damaged(folder, error) from error
        finally:
            logging.set_verbosity(verbosity)
        self._signatures = self._loaded.signatures
        self.sample_rate: int = self._metadata["sample_rate"]
        self.streaming: bool = self._metadata["streaming"]
        self.beam: int = self._metadata["beam"]

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """A whole utterance, [S] float32 in [-1, 1].

        Raises:
          UserError: samples, or what is made of them, are not finite; samples are far beyond full scale; there is not
            enough memory for so long an utterance.
        """
        outputs = self._hear_whole("transcribe", samples)
        return _extend(_new_transcript(self._metadata), outputs)

    def nbest(self, samples: np.ndarray) -> list[Transcript]:
        """The hypotheses of a beam search over a whole utterance, best first; at most as many as were exported.

        Raises:
          UserError: samples, or what is made of them, are not finite; samples are far beyond full scale; there is not
            enough memory for so long an utterance.
        """
        outputs = self._hear_whole("nbest", samples)
        ranks = np.flatnonzero(np.isfinite(outputs["scores"].numpy()[0]))
        hypotheses = ({name: values[:, k] for name, values in outputs.items()} for k in ranks)
        return [_extend(_new_transcript(self._metadata), hypothesis) for hypothesis in hypotheses]

    def stream(self, chunks: Iterable[np.ndarray]) -> Iterator[Transcript]:
        """Yields one growing transcript after every chunk; at the end it is what `transcribe` gives for all of them.

        Args:
          chunks: of any sizes, [n] float32 in [-1, 1]; taken one by one, so that they may come from a microphone.

        Raises:
          UserError: as in `transcribe`, of a chunk; nothing of that chunk is heard.
        """
        state, transcript = self._signatures["initial_state"](), _new_transcript(self._metadata)
        for samples in chunks:
            heard = self._hear("step", samples=tf.constant(samples[None], tf.float32), **state)
            state = {name: heard[name] for name in state}
            yield _extend(transcript, heard)
        yield _extend(transcript, self._hear("flush", **state))

    def _hear_whole(self, signature: str, samples: np.ndarray) -> dict[str, tf.Tensor]:
        check_memory(self._metadata["bytes_per_square_frame"], len(samples))
        batch = {
            "samples": tf.constant(samples[None], tf.float32),
            "num_samples": tf.constant([len(samples)], tf.int32),
        }
        try:
            return self._hear(signature, **batch)
        except tf.errors.ResourceExhaustedError as error:
            raise too_long(len(samples), "more memory than there is") from error

    def _hear(self, signature: str, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = dict(self._signatures[signature](**inputs))
        error = outputs.pop("error").numpy()[0].decode()
        if error:
            raise _unheard(error)
        return outputs


class LiteRecognizer:
    """Calls a TFLite file, in steps of a fixed size; what does not fill one waits outside the file.

    Args:
      folder: of the export.
      num_threads: that its operations may use.

    Raises:
      UserError: if there is no export, or one that this version does not read.
    """

    streaming = True

    def __init__(self, folder: str, *, num_threads: int = 1):
        self._metadata = _open(folder, "tflite")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # tf.lite announces that it will move to ai-edge-litert
                self._interpreter = tf.lite.Interpreter(os.path.join(folder, LITE_FILE), num_threads=num_threads)
            self._initial_state = self._interpreter.get_signature_runner("initial_state")
            self._step = self._interpreter.get_signature_runner("step")
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from error
        self.sample_rate: int = self._metadata["sample_rate"]

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """A whole utterance, [S] float32 in [-1, 1].

        Raises:
          UserError: samples, or what is made of them, are not finite; samples are far beyond full scale; there is not
            enough memory for so long an utterance.
        """
        *_, transcript = self.stream([samples])
        return transcript

    def stream(self, chunks: Iterable[np.ndarray]) -> Iterator[Transcript]:
        """As `Recognizer.stream`."""
        state, transcript, heard = self._initial_state(), _new_transcript(self._metadata), 0
        step_frames, pending = self._metadata["step_frames"], np.zeros([0], np.float32)
        step_samples = step_frames * SAMPLES_PER_FRAME
        for samples in chunks:
            _check(samples)
            pending = np.concatenate([pending, samples])
            while len(pending) >= step_samples + OVERLAP:
                state = self._hear(pending, step_frames, state, transcript, heard)
                heard, pending = heard + step_frames, pending[step_samples:]
            yield transcript
        self._hear(pending, num_log_mel_frames(len(pending)) // REDUCTION, state, transcript, heard)
        yield transcript

    def _hear(
        self, samples: np.ndarray, num_frames: int, state: Mapping[str, np.ndarray], transcript: Transcript, heard: int
    ) -> dict[str, np.ndarray]:
        """The next frames, [640 n + 240] or fewer samples, onto the transcript; returns the next state."""
        window = np.zeros([1, self._metadata["step_frames"] * SAMPLES_PER_FRAME + OVERLAP], np.float32)
        samples = samples[: window.shape[1]]
        window[0, : len(samples)] = samples
        try:
            outputs = self._step(samples=window, num_frames=np.array([num_frames], np.int32), **state)
        except RuntimeError as error:  # NaN is the largest of no logits: a label that there is not
            raise _unheard(LOST) from error
        if not outputs["finite"][0]:
            raise _unheard(LOST)
        _extend(transcript, outputs, first_frame=heard)
        return {name: outputs[name] for name in state}


def open_recognizer(folder: str) -> Recognizer | LiteRecognizer:
    """The caller for whatever `export` wrote.

    Raises:
      UserError: if there is no export, or one that this version does not read.
    """
    return (LiteRecognizer if _read_metadata(folder)["kind"] == "tflite" else Recognizer)(folder)


def in_chunks(samples: np.ndarray, samples_per_chunk: int) -> Iterator[np.ndarray]:
    """[S] in pieces of some samples, the last one shorter; one empty piece for no sample."""
    for start in range(0, max(len(samples), 1), samples_per_chunk):
        yield samples[start : start + samples_per_chunk]


def _read_metadata(folder: str) -> Metadata:
    try:
        return read_metadata(folder)
    except Missing:
        raise UserError(f"no exported model in {folder!r}: export the checkpoint first") from None


def _open(folder: str, kind: str) -> Metadata:
    """The metadata, when all files are found to be those that were exported."""
    metadata = _read_metadata(folder)
    if metadata["kind"] != kind:
        raise UserError(f"{folder!r} holds an export of kind {metadata['kind']}, not {kind}")
    verify(folder, metadata)
    return metadata


@contextlib.contextmanager
def _plain_path(folder: str) -> Iterator[str]:
    """The folder by a path without the letters of patterns: TensorFlow would look for files that match."""
    if not set("*?[]\\") & set(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = os.path.join(place, "model")
        os.symlink(os.path.abspath(folder), link)
        yield link


def _damaged(folder: str, error: Exception) -> UserError:
    return UserError(f"the export in {folder!r} is damaged ({error}): delete it and export again")


def _check(samples: np.ndarray) -> None:
    """What the graph of a SavedModel does with samples, for a file that has no texts inside."""
    if not np.isfinite(samples).all():
        raise _unheard(NOT_FINITE)
    if np.abs(samples).max(initial=0.0) > LOUDEST:
        raise _unheard(TOO_LOUD)


def _unheard(error: str) -> UserError:
    return UserError(f"this audio cannot be recognized ({error}): a device or a filter before it may have failed")


def _new_transcript(metadata: Metadata) -> Transcript:
    return Transcript(metadata["pieces"], metadata["frame_ms"] / 1000)


def _extend(transcript: Transcript, outputs: Mapping[str, Any], first_frame: int = 0) -> Transcript:
    """Adds the first row of a signature's outputs."""
    length = np.asarray(outputs["num_labels"])[0]
    labels, frames, log_probs = (
        np.asarray(outputs[name])[0, :length] for name in ("labels", "frames", "label_log_probs")
    )
    score = np.asarray(outputs["scores"])[0].item()
    transcript.extend(labels.tolist(), (frames + first_frame).tolist(), log_probs.tolist(), score)
    return transcript
