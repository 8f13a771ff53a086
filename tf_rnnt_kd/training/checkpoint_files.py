"""One checkpoint on disk, of which no flipped byte passes.

    ckpt-STEP.data      the bytes of all tensors, one after the other
    ckpt-STEP.json      written last: step, costs, and of every tensor name, shape, dtype and sha256; and its own sha256

The header vouches for the data: a checkpoint without a header does not exist.
"""

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf
from pydantic import with_config
from typing_extensions import TypedDict

from tf_rnnt_kd import files


class Damaged(Exception):
    """A checkpoint whose bytes are not those that were written."""


class Tensor(NamedTuple):
    """What the header says of a tensor, in the order of the data."""

    name: str
    shape: list[files.Count]
    dtype: Literal["bfloat16", "bool", "float16", "float32", "float64", "int32", "int64", "uint8", "uint32", "uint64"]
    sha256: files.Sha256

    @property
    def num_bytes(self) -> int:
        """Its part of the data."""
        return math.prod(self.shape) * tf.as_dtype(self.dtype).size


@with_config(files.CLOSED)
class Header(TypedDict):
    """What the header of a checkpoint says; `wer` is that on the development set where the step was evaluated."""

    step: files.Count
    seconds: files.Amount
    wer: files.Amount | None
    tensors: list[Tensor]
    sha256: files.Sha256


def find_steps(folder: str) -> list[int]:
    """Steps of the checkpoints in a folder, which need not exist."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(found[1]) for found in map(re.compile(r"ckpt-(\d+)\.json").fullmatch, names) if found)


def write_checkpoint(
    folder: str,
    step: int,
    names: Sequence[str],
    values: Sequence[np.ndarray],
    *,
    seconds: float,
    wer: float | None,
) -> None:
    """Writes a checkpoint and reads it back, from the disk where the system allows; it exists when all of it is right.

    Args:
      folder: made if missing.
      step: of the run.
      names: of the tensors.
      values: of the tensors.
      seconds: spent training.
      wer: on the development set, where this step was evaluated.

    Raises:
      Damaged: if what is read is not what was written.
      OSError: if it can't be written.
    """
    os.makedirs(folder, exist_ok=True)
    tensors = [
        Tensor(name, list(value.shape), value.dtype.name, hashlib.sha256(_bytes(value)).hexdigest())
        for name, value in zip(names, values, strict=True)
    ]
    header = files.dump_signed({"seconds": seconds, "step": step, "tensors": tensors, "wer": wer})
    with files.replacing(data_path(folder, step)) as temporary:
        with open(temporary, "wb") as file:
            for value in values:
                file.write(_bytes(value))
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # or the check would read what the system still has in memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        _verify_data(temporary, tensors)
    files.write_atomically(header_path(folder, step), header)
    if read_header(folder, step)["tensors"] != tensors:
        raise Damaged("its header was not read back as it was written")


def read_header(folder: str, step: int) -> Header:
    """What the header of a checkpoint says.

    Raises:
      Damaged: if it is missing, any byte of it was changed, or it is that of another step.
    """
    try:
        header = files.read_signed(header_path(folder, step), Header)
    except files.Missing as error:
        raise Damaged("it has no header") from error
    except files.Damaged as error:
        raise Damaged(f"its header: {error.what}") from error
    if header["step"] != step:
        raise Damaged(f"it is the checkpoint of step {header['step']} under another name")
    return header


def verify_checkpoint(folder: str, step: int) -> Header:
    """Compares every byte of a checkpoint with its checksums; returns the header.

    Raises:
      Damaged: if it is incomplete, or any byte was changed.
    """
    header = read_header(folder, step)
    _verify_data(data_path(folder, step), header["tensors"])
    return header


def read_values(folder: str, step: int, tensors: Sequence[Tensor]) -> Iterator[np.ndarray]:
    """The values of a verified checkpoint, one at a time."""
    with open(data_path(folder, step), "rb") as file:
        for tensor in tensors:
            value = np.frombuffer(file.read(tensor.num_bytes), tf.as_dtype(tensor.dtype).as_numpy_dtype)
            yield value.reshape(tensor.shape)


def remove_checkpoint(folder: str, step: int) -> None:
    """Removes a checkpoint, the header first."""
    for path in (header_path(folder, step), data_path(folder, step)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def clear_remains(folder: str) -> None:
    """Removes what killed writers left half written or half removed; nobody else may be writing."""
    if not os.path.isdir(folder):
        return
    files.remove_temporaries(folder)
    whole = {data_path(folder, step) for step in find_steps(folder)}
    for path in {entry.path for entry in os.scandir(folder) if entry.name.endswith(".data")} - whole:
        os.remove(path)


def header_path(folder: str, step: int) -> str:
    """Of the header."""
    return os.path.join(folder, f"ckpt-{step}.json")


def data_path(folder: str, step: int) -> str:
    """Of the tensors."""
    return os.path.join(folder, f"ckpt-{step}.data")


def _bytes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _verify_data(path: str, tensors: Sequence[Tensor]) -> None:
    try:
        size, expected = os.path.getsize(path), sum(tensor.num_bytes for tensor in tensors)
        if size != expected:
            raise Damaged(f"it has {size} bytes of {expected}")
        with open(path, "rb") as file:
            for tensor in tensors:
                if hashlib.sha256(file.read(tensor.num_bytes)).hexdigest() != tensor.sha256:
                    raise Damaged(f"the sha256 of {tensor.name} does not fit")
    except OSError as error:
        raise Damaged(f"its data can't be read: {error}") from error
