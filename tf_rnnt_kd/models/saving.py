"""A trained model as a folder: architecture, weights and tokenizer, each checked when read."""

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tf_rnnt_kd import files
from tf_rnnt_kd.arrays import Array, read_arrays
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.lineage import FILE as LINEAGE
from tf_rnnt_kd.models.description import (
    DESCRIPTIONS,
    FORMAT,
    LANGUAGE_MODEL,
    TRANSDUCER,
    Description,
    Headline,
    Kind,
    LanguageDescription,
    Signed,
    Weight,
    least_weights,
)
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.tokenizer import Tokenizer, load_tokenizer

_REMEDY = "restore it, or delete the folder and train again"


def save_model(model: Transducer | LanguageModel, tokenizer: Tokenizer, folder: str) -> str:
    """Writes `tokenizer/`, `weights.npz` and, last, `model.json`. Returns the hash of the weights.

    A folder without `model.json` holds no model. Float32 weights are written as they are: loading is exact.
    """
    os.makedirs(folder, exist_ok=True)
    copy = os.path.join(folder, "tokenizer")
    if os.path.realpath(copy) != os.path.realpath(tokenizer.folder):
        # Without its lineage: what it was trained on is the business of whoever trained it.
        shutil.copytree(tokenizer.folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LINEAGE))
    weights = [variable.numpy() for variable in model.weights]
    with files.replacing(os.path.join(folder, "weights.npz")) as temporary, open(temporary, "wb") as file:
        np.savez(file, *weights)
    description = {
        "format": FORMAT,
        "kind": LANGUAGE_MODEL if isinstance(model, LanguageModel) else TRANSDUCER,
        "architecture": model.get_config(),
        "weights": [Weight(variable.path, list(variable.shape), variable.dtype) for variable in model.weights],
        "weights_hash": hash_weights(weights),
        "tokenizer_hash": tokenizer.hash,
    }
    files.write_atomically(os.path.join(folder, "model.json"), files.dump_signed(description))
    return description["weights_hash"]


def load_model(folder: str, *, chunk: int | None = None, second_pass: bool = False) -> tuple[Transducer, Tokenizer]:
    """Reads what `save_model` wrote.

    Args:
      folder: of the model.
      chunk: in place of the encoder's own, one of those it was trained on.
      second_pass: whether the model encodes by its second pass, with full context, instead of its first.

    Raises:
      UserError: if there is no model, it was not trained on that chunk, it has no second pass, or the weights are
        damaged or of another architecture.
    """
    description = read_description(folder)
    encoder = description["architecture"]["encoder"]
    trained = {encoder["chunk"], *encoder["training_chunks"]}
    if chunk is not None and chunk not in trained:
        raise UserError(f"{folder} was not trained on chunks of {chunk} frames: choose from {sorted(trained)}")
    encoder["chunk"] = chunk or encoder["chunk"]
    if second_pass and not description["architecture"]["second_pass_blocks"]:
        raise UserError(f"{folder} has no second pass: leave out second_pass, or train with second_pass_blocks")
    description["architecture"]["uses_second_pass"] = second_pass
    tokenizer = _load_tokenizer(folder, description)
    weights = _read_weights(folder, description)
    with _building(folder, description):
        model = Transducer.from_config(description["architecture"])
    assign_weights(model, weights, folder)
    return model, tokenizer


def find_hash(folder: str) -> str | None:
    """Hash of the model in a folder, of whatever kind: of weights, architecture and tokenizer; None without a model."""
    path = os.path.join(folder, "model.json")
    return files.read_signed(path, Signed, remedy=_REMEDY)["sha256"] if os.path.exists(path) else None


def has_second_pass(folder: str) -> bool:
    """Whether the model in `folder` hears an utterance twice, the second time with full context."""
    return read_description(folder)["architecture"]["second_pass_blocks"] > 0


def load_language_model(folder: str) -> tuple[LanguageModel, Tokenizer, str]:
    """Reads what `save_model` wrote of a language model; the last is the hash of its weights.

    Raises:
      UserError: if there is none, or the weights are damaged or of another architecture.
    """
    description = read_description(folder, kind=LANGUAGE_MODEL)
    tokenizer = _load_tokenizer(folder, description)
    weights = _read_weights(folder, description)
    with _building(folder, description):
        model = LanguageModel(**description["architecture"])
    assign_weights(model, weights, folder)
    return model, tokenizer, description["weights_hash"]


def _load_tokenizer(folder, description):
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer"))
    if tokenizer.hash != description["tokenizer_hash"]:
        raise UserError(f"{folder}/tokenizer is not the tokenizer this model was trained with; restore it")
    return tokenizer


@contextlib.contextmanager
def _building(folder: str, description: Description | LanguageDescription) -> Iterator[None]:
    """Refuses an architecture that is larger than the weights, or that no model can have."""
    path = os.path.join(folder, "model.json")
    if least_weights(description["architecture"]) > sum(math.prod(weight.shape) for weight in description["weights"]):
        raise files.Damaged(path, "its architecture has more weights than are there", _REMEDY)
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, tf.errors.OpError) as error:
        what = f"there is no model of its architecture ({str(error).partition(chr(10))[0]})"
        raise files.Damaged(path, what, _REMEDY) from error


def read_description(folder: str, *, kind: str = TRANSDUCER) -> Description | LanguageDescription:
    """`model.json`, or a UserError that says what is missing, or that the model is of another kind."""
    path = os.path.join(folder, "model.json")
    try:
        found = files.read_json(path, Headline, remedy=_REMEDY)["format"]
    except files.Missing:
        raise UserError(f"no trained model in {folder!r}: {path} is missing; train it first") from None
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, this version reads {FORMAT}: train it again, or use the version that wrote it"
        )
    other = files.read_signed(path, Kind, remedy=_REMEDY)["kind"]
    if other != kind:
        raise UserError(f"{folder} holds a {other} where a {kind} is wanted: give the folder of a {kind}")
    return files.read_signed(path, DESCRIPTIONS[kind], remedy=_REMEDY)


def read_weights(folder: str, *, kind: str = TRANSDUCER) -> list[tuple[str, np.ndarray]]:
    """The weights in order, with their paths; verified against what `model.json` says of them."""
    return _read_weights(folder, read_description(folder, kind=kind))


def _read_weights(folder: str, description: Description | LanguageDescription) -> list[tuple[str, np.ndarray]]:
    path, listed = os.path.join(folder, "weights.npz"), description["weights"]
    wanted = {f"arr_{i}": Array(weight.dtype, tuple(weight.shape)) for i, weight in enumerate(listed)}
    weights = list(read_arrays(path, wanted, remedy=_REMEDY).values())
    if hash_weights(weights) != description["weights_hash"]:
        raise files.Damaged(path, "its hash is not that in model.json", _REMEDY)
    return [(weight.path, value) for weight, value in zip(listed, weights, strict=True)]


def assign_weights(model: Transducer | LanguageModel, weights: list[tuple[str, np.ndarray]], where: str) -> None:
    """Copies weights into a model of the same architecture; a difference is refused by name, before any copy."""
    ours = [(variable.path, tuple(variable.shape)) for variable in model.weights]
    theirs = [(path, value.shape) for path, value in weights]
    for own, other in zip(ours, theirs, strict=False):
        if own != other:
            raise UserError(f"{where} is of another architecture: its {other[0]} {other[1]} is {own[0]} {own[1]} here")
    if len(ours) != len(theirs):
        raise UserError(f"{where} is of another architecture: it has {len(theirs)} weights, this model {len(ours)}")
    for variable, (_, value) in zip(model.weights, weights, strict=True):
        variable.assign(value)


def hash_weights(weights: list[np.ndarray]) -> str:
    """sha256 over types, shapes and values in order: unlike the file's, it does not change with the time of writing."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(f"{weight.dtype.name} {weight.shape}\n".encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()
