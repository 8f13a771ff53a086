"""What a fuzzed door is, and how what comes out of it is judged."""

import hashlib
import os
import pathlib
import resource
import shutil
import traceback
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_rnnt_kd.errors import UserError

# What can come out, in the order of the table.
VERDICTS = ("clear", "correct", "accepted", "excused", "silent", "traceback", "crash", "hang")
FAULTS = ("silent", "traceback", "crash", "hang")

_MOST_MEMORY = 400  # MiB that the peak may grow in a case: the undamaged things here take a few
_LONGEST_MESSAGE = 2_000  # characters: more is a dump, not a line


class Inconsistent(Exception):
    """What was read contradicts itself, and nothing was said."""


class Case(NamedTuple):
    """One input for a door.

    Attributes:
      what: was done to it, in words.
      given: what the door gets: its `given`, damaged.
      forged: made by hand and signed again, so that another outcome is that of another, valid thing.
      excused: hit where the format has no redundancy, so that nobody can tell it from another, valid thing.
      allowed: further right outcomes.
    """

    what: str
    given: Any
    forged: bool = False
    excused: bool = False
    allowed: tuple = ()


class Outcome(NamedTuple):
    """What a door with several undamaged things makes of one of them, by name."""

    name: str
    found: Any


class Verdict(NamedTuple):
    """One of `VERDICTS`, and what the outcome was in a few words."""

    verdict: str
    detail: str = ""


class Door:
    """Something that reads what others may have damaged.

    Attributes:
      name: on the command line and in the table.
      cases: in the fixed part, which CI runs.
    """

    name: str
    cases: int

    def __init__(self, folder: pathlib.Path):
        """`folder` is kept between processes, so that the undamaged things are made once."""
        self.folder, self.scratch = folder / "whole", folder / "scratch"

    def build(self) -> None:
        """Makes the undamaged things in `self.folder`."""

    def open(self) -> Any:
        """Loads what the cases need in this process, and returns the outcome of the undamaged input."""
        return self.enter(self.folder)

    def case(self, rng: np.random.Generator, number: int) -> Case:
        """Case `number`, of which every random choice is `rng`'s."""
        raise NotImplementedError

    def enter(self, given: Any) -> Any:
        """What the product makes of an input, as something that `==` compares."""
        raise NotImplementedError

    def fits(self, outcome: Any, reference: Any) -> bool:
        """Whether an outcome is that of the undamaged input, `reference`."""
        return outcome == reference

    def copied(self, name: str = "") -> pathlib.Path:
        """A fresh copy of the undamaged folder, or of one within, to be damaged."""
        remove(self.scratch)
        shutil.copytree(self.folder / name, self.scratch, symlinks=True)
        return self.scratch


def prepare(door: Door) -> Any:
    """Makes the undamaged things where that was not done, and returns the outcome of the undamaged input."""
    mark = door.folder.with_suffix(".made")
    if not mark.exists():
        remove(door.folder)
        door.folder.mkdir(parents=True)
        door.build()
        mark.touch()
    return door.open()


def make_case(door: Door, seed: int, number: int) -> Case:
    """The same case for the same arguments."""
    return door.case(np.random.default_rng([seed, zlib.crc32(door.name.encode()), number]), number)


def judge(door: Door, reference: Any, case: Case, *, on_error: Callable[[], None] = lambda: None) -> Verdict:
    """Sends a case through its door.

    Args:
      door: prepared.
      reference: outcome of the undamaged input.
      case: of `make_case`.
      on_error: called while an exception that nobody should see is at hand.
    """
    before = _peak_memory()
    try:
        outcome = door.enter(case.given)
    except UserError as error:
        verdict = _judge_messages(error.mistakes)
    except Inconsistent as error:
        verdict = Verdict("silent", str(error))
    except Exception as error:
        on_error()
        verdict = Verdict("traceback", f"{_place(error)} {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    else:
        right = door.fits(outcome, reference) or outcome in case.allowed
        verdict = Verdict("correct") if right else _judge_other(outcome, case)
    grown = _peak_memory() - before
    return Verdict("silent", f"took {grown} MiB; {verdict}") if grown > _MOST_MEMORY else verdict


def _judge_messages(messages: Sequence[str]) -> Verdict:
    unclear = [message for message in messages if not message.strip() or len(message) > _LONGEST_MESSAGE]
    if unclear:
        return Verdict("traceback", f"a message of {len(unclear[0])} characters: {unclear[0][:100]}")
    return Verdict("clear", " ".join("; ".join(messages).split())[:_LONGEST_MESSAGE])


def _judge_other(outcome: Any, case: Case) -> Verdict:
    kind = "accepted" if case.forged else "excused" if case.excused else "silent"
    return Verdict(kind, str(outcome)[:300])


def _place(error: Exception) -> str:
    """Where in the product an exception came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tf_rnnt_kd/" in frame.filename]
    if not frames:
        return "(outside)"
    return f"{frames[-1].filename.rpartition('/tf_rnnt_kd/')[2]}:{frames[-1].lineno}"


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def remove(path: pathlib.Path) -> None:
    """Removes whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def one_of(rng: np.random.Generator, values: Sequence) -> Any:
    """A random element, as it is."""
    return values[int(rng.integers(len(values)))]


def digest(*arrays: Any) -> str:
    """A short text that differs where arrays differ in value, shape or type."""
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.shape}{array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array).encode())
    return found.hexdigest()[:12]
