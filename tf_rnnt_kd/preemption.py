"""SIGTERM, which a scheduler sends before it takes the machine away: save, leave a marker, exit as if done.

Everything on disk is whole at any moment, so work is left at once; only training finishes its step first, and saves.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.progress import say

MARKER = "resumable"
CHILD_CODE = os.EX_TEMPFAIL  # by which a parent tells a child that was stopped from one that is done


class Preempted(BaseException):
    """Raised on SIGTERM. No `Exception`: nothing that mends errors may swallow it."""


class _Signal:
    """What is known of the one signal of this process."""

    heard = False
    came = False
    deferred = False


@contextlib.contextmanager
def leaving_resumable(work_dir: str, *, is_child: bool) -> Iterator[None]:
    """Within, SIGTERM raises `Preempted`, and that ends the process with code 0 and a marker in the run folder.

    Args:
      work_dir: of the run.
      is_child: leaves the marker to the parent, and tells it by `CHILD_CODE`.
    """
    marker = os.path.join(work_dir, MARKER)
    before = signal.getsignal(signal.SIGTERM)
    _Signal.heard = True
    listen()
    try:
        yield
    except Preempted:
        if is_child:
            sys.exit(CHILD_CODE)
        _leave(marker)
        sys.exit(0)
    finally:
        _Signal.heard = _Signal.came = False
        signal.signal(signal.SIGTERM, before)


def go_on(work_dir: str) -> None:
    """Removes the marker of an earlier end, and says so: by whoever has found that the run can go on."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(work_dir, MARKER))
        say("  SIGTERM stopped this run: it goes on from there")


def listen() -> None:
    """Sets the handler of `leaving_resumable`, within that, again: libraries set one of their own."""
    if _Signal.heard:
        signal.signal(signal.SIGTERM, _receive)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM only makes the function that is given true; leaving raises `Preempted` if it came."""
    if _Signal.came:
        raise Preempted  # once more: a destructor, for one, swallows whatever is raised in it
    _Signal.deferred = True
    try:
        yield lambda: _Signal.came
    finally:
        _Signal.deferred = False
    if _Signal.came:
        raise Preempted


def _receive(*_) -> None:
    repeated, _Signal.came = _Signal.came, True  # to a group of processes it may come twice
    if not (repeated or _Signal.deferred):
        raise Preempted


def _leave(marker: str) -> None:
    try:
        with open(marker, "w", encoding="utf-8") as file:
            file.write("stopped by SIGTERM; the same command goes on\n")
    except OSError as error:
        raise UserError(f"stopped by SIGTERM, but {marker} can't be written: {error.strerror}") from error
    say("  stopped by SIGTERM: the same command goes on")
