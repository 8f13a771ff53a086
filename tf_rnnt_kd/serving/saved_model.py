"""Exports: a trained model as a SavedModel that bare TensorFlow runs, and a caller for it."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import FRAME_STEP, SAMPLE_RATE
from tf_rnnt_kd.models.saving import load_model, read_description
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.serving.streaming_module import OfflineModule, StreamingModule
from tf_rnnt_kd.text.tokenizer import Tokenizer

METADATA = os.path.join("assets.extra", "metadata.json")
_FORMAT = 1


def export_checkpoint(checkpoint: str, folder: str, *, chunk: int | None = None, second_pass: bool = False) -> None:
    """Exports what `models.saving.save_model` wrote; an export of the same model that is there already is left alone.

    Args:
      checkpoint: folder of the trained model.
      folder: of the export; made when the export is whole, never before.
      chunk: encoder frames that see each other, for a model trained on several; None for its own.
      second_pass: export the second pass of a cascade, for whole utterances; else its first, which streams, and whose
        `transcribe` gives the text of the stream.

    Raises:
      UserError: if there is no model, it has no such chunk or pass, or something else is at `folder`.
    """
    description = read_description(checkpoint)
    model_hash, chunk = description["weights_hash"], chunk or description["architecture"]["encoder"].get("chunk", 1)
    if os.path.lexists(folder):
        found = _read_metadata(folder)
        same = found.get("model_hash"), found.get("chunk", 1), found.get("second_pass", False)
        if same == (model_hash, chunk, second_pass):
            return
        raise UserError(f"{folder} exists and is no such export of {checkpoint}: delete it or choose another folder")
    model, tokenizer = load_model(checkpoint, chunk=chunk, second_pass=second_pass)
    export_model(model, tokenizer, folder, model_hash=model_hash)


def export_model(model: Transducer, tokenizer: Tokenizer, folder: str, *, model_hash: str) -> None:
    """Writes a SavedModel: streaming and offline signatures of a causal model, offline ones of a full-context model.

    Args:
      model: the transducer.
      tokenizer: its tokenizer; its pieces go into the graph.
      folder: of the export; must not exist.
      model_hash: of the weights, for the metadata.
    """
    module = (StreamingModule if model.causal else OfflineModule)(model, tokenizer.pieces)
    folder = os.path.abspath(folder)
    temporary = f"{folder}.{os.getpid()}.tmp"
    try:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # no one trains an export
        tf.saved_model.save(module, temporary, signatures=module.signatures(), options=options)
        metadata = {
            "chunk": model.encoder.chunk,
            "format": _FORMAT,
            "frame_ms": 1000 * FRAME_STEP * REDUCTION // SAMPLE_RATE,
            "model_hash": model_hash,
            "sample_rate": SAMPLE_RATE,
            "second_pass": model.uses_second_pass,
            "streaming": model.causal,
            "tokenizer_hash": tokenizer.hash,
        }
        os.makedirs(os.path.dirname(os.path.join(temporary, METADATA)), exist_ok=True)
        with open(os.path.join(temporary, METADATA), "w", encoding="utf-8") as file:
            file.write(json.dumps(metadata, indent=1, sort_keys=True) + "\n")
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Recognizer:
    """Calls an export.

    Args:
      folder: of the SavedModel.

    Raises:
      UserError: if there is no export, or one that this version does not read.
    """

    def __init__(self, folder: str):
        metadata = _read_metadata(folder)
        if metadata.get("format") != _FORMAT:
            raise UserError(f"no exported model in {folder!r} that this version reads: export the checkpoint first")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # TensorFlow warns that gradients are missing, which no caller wants
        try:
            self._loaded = tf.saved_model.load(folder)
        except (OSError, tf.errors.OpError, ValueError) as error:
            raise UserError(f"the export in {folder!r} is damaged ({error}): delete it and export again") from error
        finally:
            logging.set_verbosity(verbosity)
        self._signatures = self._loaded.signatures
        self.sample_rate: int = metadata["sample_rate"]
        self.streaming: bool = metadata["streaming"]

    def transcribe(self, samples: np.ndarray) -> str:
        """Text of a whole utterance, [S] float32 in [-1, 1]."""
        outputs = self._signatures["transcribe"](
            samples=tf.constant(samples[None], tf.float32), num_samples=tf.constant([len(samples)], tf.int32)
        )
        return outputs["text"].numpy()[0].decode()

    def stream(self, chunks: Iterable[np.ndarray]) -> Iterator[str]:
        """Yields the text so far after every chunk, and at the end the text that `transcribe` gives for all of them.

        Args:
          chunks: of any sizes, [n] float32 in [-1, 1]; taken one by one, so that they may come from a microphone.
        """
        state, text = self._signatures["initial_state"](), ""
        for samples in chunks:
            chunk = tf.constant(samples[None], tf.float32)  # [1, n]
            text += _pop_text(state := dict(self._signatures["step"](samples=chunk, **state)))
            yield text.strip()
        yield (text + _pop_text(dict(self._signatures["flush"](**state)))).strip()


def in_chunks(samples: np.ndarray, samples_per_chunk: int) -> Iterator[np.ndarray]:
    """[S] in pieces of some samples, the last one shorter; one empty piece for no sample."""
    for start in range(0, max(len(samples), 1), samples_per_chunk):
        yield samples[start : start + samples_per_chunk]


def _pop_text(outputs: dict[str, tf.Tensor]) -> str:
    """Takes from a step's outputs what is not state."""
    del outputs["labels"], outputs["num_labels"]
    return outputs.pop("text").numpy()[0].decode()


def _read_metadata(folder: str) -> dict:
    try:
        with open(os.path.join(folder, METADATA), encoding="utf-8") as file:
            metadata = json.load(file)
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
