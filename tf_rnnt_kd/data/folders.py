"""Folders of audio: every file once, in an order that is the same each time."""

import os
from collections.abc import Iterator

from tf_rnnt_kd.data.audio import AUDIO_SUFFIXES
from tf_rnnt_kd.errors import UserError


def find_audio(folder: str) -> list[str]:
    """Paths of all audio below a folder, folder by folder, sorted in each.

    Raises:
      UserError: there is no such folder, or no audio in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}: check the path of the corpus")
    paths = [path for path in walk(folder) if path.lower().endswith(AUDIO_SUFFIXES)]
    if not paths:
        raise UserError(f"{folder} has no audio ({' '.join(AUDIO_SUFFIXES)}): check the path of the corpus")
    return paths


def walk(folder: str) -> Iterator[str]:
    """Paths of all files below a folder; hidden files and folders are left out.

    Links are followed, but no folder is entered twice: links can make circles.
    """
    entered = {_identity(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in _real_first(parent, folders) if _is_new(os.path.join(parent, name), entered)]
        yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))


def name_problem(name: str) -> str | None:
    """Why a file can't be called so, or None."""
    if any(0xDC80 <= ord(letter) <= 0xDCFF for letter in name):  # how Python shows bytes that are no UTF-8
        return "its name is not UTF-8: rename it"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "its name has a control character: rename it"
    return None


def _real_first(parent: str, folders: list[str]) -> list[str]:
    visible = [name for name in folders if not name.startswith(".")]
    return sorted(visible, key=lambda name: (os.path.islink(os.path.join(parent, name)), name))


def _is_new(folder: str, entered: set[tuple[int, int]]) -> bool:
    identity = _identity(folder)
    is_new = identity not in entered
    entered.add(identity)
    return is_new


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
