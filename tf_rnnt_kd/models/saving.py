"""A trained model as a folder: architecture, weights and tokenizer, each checked when read."""

import hashlib
import json
import os
import shutil

import numpy as np

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.lineage import FILE as LINEAGE
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.tokenizer import Tokenizer, load_tokenizer

_FORMAT = 1
_TRANSDUCER, _LANGUAGE_MODEL = "transducer", "language model"  # the kinds of model that a folder may hold


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
    _replace(os.path.join(folder, "weights.npz"), lambda file: np.savez(file, *weights))
    description = {
        "format": _FORMAT,
        "architecture": model.get_config(),
        "weights": [[variable.path, list(variable.shape)] for variable in model.weights],
        "weights_hash": hash_weights(weights),
        "tokenizer_hash": tokenizer.hash,
    }
    if isinstance(model, LanguageModel):
        description["kind"] = _LANGUAGE_MODEL
    text = json.dumps(description, indent=1, sort_keys=True)
    _replace(os.path.join(folder, "model.json"), lambda file: file.write(text.encode()))
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
    trained = {encoder.get("chunk", 1), *encoder.get("training_chunks", ())}
    if chunk is not None and chunk not in trained:
        raise UserError(f"{folder} was not trained on chunks of {chunk} frames: choose from {sorted(trained)}")
    encoder["chunk"] = chunk or encoder.get("chunk", 1)
    if second_pass and not has_second_pass(folder):
        raise UserError(f"{folder} has no second pass: leave out second_pass, or train with second_pass_blocks")
    description["architecture"]["uses_second_pass"] = second_pass
    tokenizer = _load_tokenizer(folder, description)
    model = Transducer.from_config(description["architecture"])
    assign_weights(model, read_weights(folder), folder)
    return model, tokenizer


def find_hash(folder: str) -> str | None:
    """Hash of the weights of the model in a folder, of whatever kind; None where there is none."""
    path = os.path.join(folder, "model.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)["weights_hash"]


def has_second_pass(folder: str) -> bool:
    """Whether the model in `folder` hears an utterance twice, the second time with full context."""
    return read_description(folder)["architecture"].get("second_pass_blocks", 0) > 0


def load_language_model(folder: str) -> tuple[LanguageModel, Tokenizer, str]:
    """Reads what `save_model` wrote of a language model; the last is the hash of its weights.

    Raises:
      UserError: if there is none, or the weights are damaged or of another architecture.
    """
    description = read_description(folder, kind=_LANGUAGE_MODEL)
    tokenizer = _load_tokenizer(folder, description)
    model = LanguageModel(**description["architecture"])
    assign_weights(model, read_weights(folder, kind=_LANGUAGE_MODEL), folder)
    return model, tokenizer, description["weights_hash"]


def _load_tokenizer(folder, description):
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer"))
    if tokenizer.hash != description["tokenizer_hash"]:
        raise UserError(f"{folder}/tokenizer is not the tokenizer this model was trained with; restore it")
    return tokenizer


def read_description(folder: str, *, kind: str = _TRANSDUCER) -> dict:
    """`model.json`, or a UserError that says what is missing, or that the model is of another kind."""
    path = os.path.join(folder, "model.json")
    try:
        with open(path, encoding="utf-8") as file:
            description = json.load(file)
    except FileNotFoundError:
        raise UserError(f"no trained model in {folder!r}: {path} is missing; train it first") from None
    except ValueError:
        raise UserError(f"{path} is damaged: delete the folder and train again") from None
    if description.get("format") != _FORMAT:
        raise UserError(f"{path} has format {description.get('format')}, this version reads {_FORMAT}; export it anew")
    found = description.get("kind", _TRANSDUCER)
    if found != kind:
        raise UserError(f"{folder} holds a {found} where a {kind} is wanted: give the folder of a {kind}")
    return description


def read_weights(folder: str, *, kind: str = _TRANSDUCER) -> list[tuple[str, np.ndarray]]:
    """The weights in order, with their paths; verified against the hash in `model.json`."""
    description = read_description(folder, kind=kind)
    path = os.path.join(folder, "weights.npz")
    try:
        with open(path, "rb") as file, np.load(file) as archive:
            weights = [archive[name] for name in archive.files]
    except Exception as error:  # zip, zlib, struct and OS errors all mean one thing here
        raise UserError(f"{path} cannot be read ({error}): restore it, or delete the folder and train again") from error
    if hash_weights(weights) != description["weights_hash"]:
        raise UserError(f"{path} is damaged (its hash is not that in model.json): restore it or train again")
    return [(name, weight) for (name, _), weight in zip(description["weights"], weights, strict=True)]


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
    """sha256 over the values in order: unlike the file's, it does not change with the time of writing."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def _replace(path, write):
    with open(path + ".tmp", "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)
