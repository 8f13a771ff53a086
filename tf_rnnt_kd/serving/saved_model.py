"""Exports as a SavedModel that bare TensorFlow and TensorFlow Serving run."""

import tensorflow as tf

from tf_rnnt_kd.models.saving import find_hash, load_model
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.serving.export_folder import is_exported, write_export
from tf_rnnt_kd.serving.offline_module import OfflineModule
from tf_rnnt_kd.serving.streaming_module import StreamingModule
from tf_rnnt_kd.text.tokenizer import Tokenizer


def export_checkpoint(
    checkpoint: str, folder: str, *, chunk: int | None = None, second_pass: bool = False, beam: int = 8
) -> bool:
    """Exports what `models.saving.save_model` wrote; an export of the same model that is there already is left alone.

    Returns whether there was none.

    Args:
      checkpoint: folder of the trained model.
      folder: of the export; made when the export is whole, never before.
      chunk: encoder frames that see each other, for a model trained on several; None for its own.
      second_pass: export the second pass of a cascade, for whole utterances; else its first, which streams, and whose
        `transcribe` gives the text of the stream.
      beam: hypotheses of the signature `nbest`.

    Raises:
      UserError: if there is no model, it has no such chunk or pass, or something else is at `folder`.
    """
    heard = {"chunk": chunk, "second_pass": second_pass}
    if is_exported(checkpoint, folder, kind="saved_model", beam=beam, **heard):
        return False
    model, tokenizer = load_model(checkpoint, **heard)
    model_hash = find_hash(checkpoint)
    export_model(model, tokenizer, folder, model_hash=model_hash, beam=beam, checkpoint=checkpoint)
    return True


def export_model(
    model: Transducer,
    tokenizer: Tokenizer,
    folder: str,
    *,
    model_hash: str,
    beam: int = 8,
    checkpoint: str | None = None,
) -> None:
    """Writes a SavedModel: streaming and offline signatures of a causal model, offline ones of a full-context model.

    Args:
      model: the transducer.
      tokenizer: its tokenizer; its pieces go into the graph.
      folder: of the export; must not exist.
      model_hash: of the weights, for the metadata.
      beam: hypotheses of the signature `nbest`.
      checkpoint: folder that the model came from, if any.
    """
    module = (StreamingModule if model.causal else OfflineModule)(model, tokenizer.pieces, beam=beam)

    def write(temporary: str) -> None:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # no one trains an export
        tf.saved_model.save(module, temporary, signatures=module.signatures(), options=options)

    kind = {"kind": "saved_model", "beam": beam}
    write_export(folder, write, model, tokenizer, model_hash=model_hash, checkpoint=checkpoint, **kind)
