"""The folder of an export: the model and, beside it, what its caller must know, with a hash of everything."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from typing_extensions import TypedDict

from tf_rnnt_kd import files
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import FRAME_STEP, SAMPLE_RATE
from tf_rnnt_kd.files import Count, Name, Positive, Sha256
from tf_rnnt_kd.lineage import begin, finish
from tf_rnnt_kd.models.saving import find_hash, read_description
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.serving.memory_needs import bytes_per_square_frame
from tf_rnnt_kd.text.tokenizer import Tokenizer

METADATA = os.path.join("assets.extra", "metadata.json")
FORMAT = 3
_AGAIN = "delete the folder and export again"


class _About(TypedDict):
    """What is known of every export.

    Attributes:
      bytes_per_square_frame: memory of a whole utterance, see `memory_needs`.
      chunk: encoder frames that see each other.
      files: the sha256 of every other file, by its path in the folder.
      format: of the folder.
      frame_ms: milliseconds of an encoder frame.
      model_hash: see `models.saving.find_hash`.
      pieces: text of each label.
      sample_rate: of the audio, in Hz.
      second_pass: whether it is the second pass of a cascade.
      sha256: of this document without this field.
      streaming: whether there are signatures of streams.
      tokenizer_hash: of the tokenizer.
    """

    bytes_per_square_frame: Count
    chunk: Positive
    files: dict[Name, Sha256]
    format: Literal[3]
    frame_ms: Positive
    model_hash: Name
    pieces: Annotated[list[str], pydantic.Field(min_length=1)]
    sample_rate: Literal[16_000]
    second_pass: bool
    sha256: Sha256
    streaming: bool
    tokenizer_hash: Name


@pydantic.with_config(files.CLOSED)
class AboutSavedModel(_About):
    """Of a SavedModel: `beam`, the hypotheses of its signature nbest."""

    kind: Literal["saved_model"]
    beam: Positive


@pydantic.with_config(files.CLOSED)
class AboutLite(_About):
    """Of a TFLite file: the encoder frames of a step, and how its weights are stored."""

    kind: Literal["tflite"]
    step_frames: Positive
    weights: Literal["float32", "int8"]


@pydantic.with_config(files.OPEN)
class _Formatted(TypedDict):
    format: int


Metadata = AboutSavedModel | AboutLite
_METADATA = Annotated[Metadata, pydantic.Field(discriminator="kind")]


def is_exported(checkpoint: str, folder: str, *, chunk: int | None, **kind: Any) -> bool:
    """Whether the folder holds this export of this checkpoint already, whole.

    Args:
      checkpoint: folder of the trained model.
      folder: of the export.
      chunk: of the encoder; None for the checkpoint's own.
      **kind: what else its metadata must say.

    Raises:
      UserError: if there is no model, or something else, or a damaged export, is at `folder`.
    """
    description = read_description(checkpoint)
    if not os.path.lexists(folder):
        return False
    chunk = chunk or description["architecture"]["encoder"].get("chunk", 1)
    wanted = {"model_hash": find_hash(checkpoint), "chunk": chunk, **kind}
    try:
        found = read_metadata(folder)
    except files.Missing:
        raise UserError(f"{folder} exists and is no export: delete it or choose another folder") from None
    others = [f"{name} is {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if others:
        raise UserError(
            f"{folder} exists and is no such export of {checkpoint} (its {', '.join(others)}): delete it or choose "
            "another folder"
        )
    verify(folder, found)
    return True


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
      model_hash: see `models.saving.find_hash`.
      checkpoint: folder that the model came from, if any.
      **kind: what else the metadata shall say.
    """
    folder = os.path.abspath(folder)
    temporary = f"{folder}.{secrets.token_hex(8)}.tmp"
    metadata = {
        "bytes_per_square_frame": bytes_per_square_frame(model),
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
        metadata["files"] = {name: _hash(path) for name, path in _list(temporary).items()}
        os.makedirs(os.path.dirname(os.path.join(temporary, METADATA)), exist_ok=True)
        files.write_atomically(os.path.join(temporary, METADATA), files.dump_signed(metadata))
        settings = {"chunk": model.encoder.chunk, "second_pass": model.uses_second_pass, **kind}
        begin(temporary, "export", {"model": model_hash, **settings}, {"model": checkpoint} if checkpoint else {})
        finish(temporary, files.sha256_of_file(os.path.join(temporary, METADATA)))
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_metadata(folder: str) -> Metadata:
    """What `write_export` wrote beside the model.

    Raises:
      files.Missing: there is no export.
      UserError: it is of another format, or damaged.
    """
    path = os.path.join(folder, METADATA)
    found = files.read_json(path, _Formatted, remedy=_AGAIN)["format"]
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, this version reads {FORMAT}: {_AGAIN}")
    return files.read_signed(path, _METADATA, remedy=_AGAIN)


def verify(folder: str, metadata: Metadata) -> None:
    """Whether all files are those that were exported; a name in the metadata leads to no other place.

    Raises:
      UserError: one is missing, or another.
    """
    present = _list(folder)
    for name, wanted in metadata["files"].items():
        if name not in present:
            raise files.Missing(os.path.join(folder, name), _AGAIN)
        if _hash(present[name]) != wanted:
            raise files.Damaged(present[name], "its sha256 is not that of the export", _AGAIN)


def _list(folder: str) -> dict[str, str]:
    """Path of every file but the metadata, by its path in the folder."""
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    named = {os.path.relpath(path, folder): path for path in paths}
    return {name: path for name, path in sorted(named.items()) if name != METADATA}


def _hash(path: str) -> str:
    with files.opened(path, _AGAIN) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
