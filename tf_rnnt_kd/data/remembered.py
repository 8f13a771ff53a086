"""What listing a corpus found out about its files, kept on disk: a later start does not look into them again."""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator

import pydantic

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.files import dump_signed, read_signed, write_atomically

Numbers = list[float]


class _Memory(pydantic.BaseModel):
    """Of each file, as `key` says it, what was found."""

    found: dict[str, list[pydantic.FiniteFloat]]


class _Kept:
    """What is known, and whether there is anything new."""

    def __init__(self, path: str):
        self.known: dict[str, Numbers] = {}
        self.used: dict[str, Numbers] = {}
        with contextlib.suppress(UserError):  # what is missing or damaged is found out again
            self.known = read_signed(path, _Memory).found


_HERE: contextvars.ContextVar[_Kept | None] = contextvars.ContextVar("kept", default=None)


@contextlib.contextmanager
def remembered_in(path: str, *, writes: bool = True) -> Iterator[None]:
    """Within, `recaller` knows what is in a file; if anything new is found, it holds what was asked for at the end.

    Args:
      path: of the file.
      writes: whether the file is written; else it is only read.
    """
    kept = _Kept(path)
    token = _HERE.set(kept)
    try:
        yield
    finally:
        _HERE.reset(token)
    if writes and not kept.used.items() <= kept.known.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomically(path, dump_signed({"found": kept.used}))


def recaller() -> Callable[[str, Callable[[], Numbers]], Numbers]:
    """A function for any thread: from a key, and a way to find out, to what is known under that key.

    The key has to change when what would be found changes: it holds the file's path, size and time, and the rule.
    """
    kept = _HERE.get()

    def recall(key: str, find_out: Callable[[], Numbers]) -> Numbers:
        if kept is None:
            return find_out()
        found = kept.known[key] if key in kept.known else find_out()
        kept.used[key] = found
        return found

    return recall
