"""The folder of an export: the model and, beside it, what its caller must know."""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import FRAME_STEP, SAMPLE_RATE
from tf_rnnt_kd.files import sha256_of_file
from tf_rnnt_kd.lineage import begin, finish
from tf_rnnt_kd.models.saving import find_hash, read_description
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.tokenizer import Tokenizer

METADATA = os.path.join("assets.extra", "metadata.json")
FORMAT = 2


def is_exported(checkpoint: str, folder: str, *, chunk: int | None, **kind: Any) -> bool:
    """Whether the folder holds this export of this checkpoint already.

    Args:
      checkpoint: folder of the trained model.
      folder: of the export.
      chunk: of the encoder; None for the checkpoint's own.
      **kind: what else its metadata must say.

    Raises:
      UserError: if there is no model, or something else is at `folder`.
    """
    description = read_description(checkpoint)
    chunk = chunk or description["architecture"]["encoder"].get("chunk", 1)
    if not os.path.lexists(folder):
        return False
    wanted = {"chunk": chunk, "format": FORMAT, "model_hash": description["weights_hash"], **kind}
    if wanted.items() <= read_metadata(folder).items():
        return True
    raise UserError(f"{folder} exists and is no such export of {checkpoint}: delete it or choose another folder")


def write_export(
    folder: str,
    write: Callable[[str], None],
    model: Transducer,
    tokenizer: Tokenizer,
    *,
    model_hash: str,
    checkpoint: str | None = None,
    **kind: Any,
) -> None:
    """Makes the folder when all of it is written, never before.

    Args:
      folder: must not exist.
      write: called with a temporary folder, which may not exist yet, to put the model there.
      model: what is exported.
      tokenizer: its tokenizer.
      model_hash: of the weights.
      checkpoint: folder that the model came from, if any.
      **kind: what else the metadata shall say.
    """
    folder = os.path.abspath(folder)
    temporary = f"{folder}.{os.getpid()}.tmp"
    metadata = {
        "chunk": model.encoder.chunk,
        "format": FORMAT,
        "frame_ms": 1000 * FRAME_STEP * REDUCTION // SAMPLE_RATE,
        "model_hash": model_hash,
        "pieces": list(tokenizer.pieces),
        "sample_rate": SAMPLE_RATE,
        "second_pass": model.uses_second_pass,
        "streaming": model.causal,
        "tokenizer_hash": tokenizer.hash,
        **kind,
    }
    try:
        write(temporary)
        os.makedirs(os.path.dirname(os.path.join(temporary, METADATA)), exist_ok=True)
        with open(os.path.join(temporary, METADATA), "w", encoding="utf-8") as file:
            file.write(json.dumps(metadata, indent=1, sort_keys=True) + "\n")
        settings = {"chunk": model.encoder.chunk, "second_pass": model.uses_second_pass, **kind}
        model_there = find_hash(checkpoint) if checkpoint else model_hash
        begin(temporary, "export", {"model": model_there, **settings}, {"model": checkpoint} if checkpoint else {})
        finish(temporary, sha256_of_file(os.path.join(temporary, METADATA)))
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_metadata(folder: str) -> dict[str, Any]:
    """What `write_export` wrote beside the model; empty where there is no export."""
    try:
        with open(os.path.join(folder, METADATA), encoding="utf-8") as file:
            metadata = json.load(file)
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
