"""Runs cases where a crash or a hang is counted and ends nothing: each door in a process of its own, forked.

The process that forks has imported TensorFlow and never used it, so a child costs milliseconds, and so does another one
after a crash.
"""

import collections
import contextlib
import faulthandler
import json
import os
import pathlib
import re
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.fuzz.core import FAULTS, VERDICTS, Door, judge, make_case, prepare

_PREPARE_SECONDS = 300.0
_MORE_MEMORY = 6 << 30  # bytes that a child may ask for: a bomb becomes a MemoryError, not somebody else's problem


class Result(NamedTuple):
    """What came of a case."""

    door: str
    number: int
    what: str
    verdict: str
    detail: str


def run_door(
    make: Callable[[pathlib.Path], Door], folder: pathlib.Path, *, cases: int, seed: int, limit: float = 30.0
) -> list[Result]:
    """Runs the cases of a door; after a crash or a hang the next process goes on behind it.

    Args:
      make: of the door, from a folder for its files.
      folder: for this door alone.
      cases: how many.
      seed: of all random choices.
      limit: seconds after which a case counts as a hang; on a busy machine the slowest takes three.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    while len(results) < cases:
        results.extend(_run_in_child(make, folder, range(len(results), cases), seed, limit))
    return results


def _run_in_child(make, folder, numbers: range, seed: int, limit: float) -> list[Result]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_child(make, folder, numbers, seed, writer)
    os.close(writer)
    try:
        return _listen(reader, child, make(folder).name, folder, numbers.start, limit)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _listen(reader: int, child: int, name: str, folder: pathlib.Path, first: int, limit: float) -> list[Result]:
    """What a child tells, and how it ended if it did not tell all."""
    results, begun, lines = [], None, _Lines(reader)
    while event := lines.next(limit if begun else _PREPARE_SECONDS):
        if event["event"] == "end":
            return results
        if event["event"] == "begin":
            begun = event
        else:
            results.append(Result(name, event["number"], event["what"], event["verdict"], event["detail"]))
    if begun is None or begun["number"] < first + len(results):
        raise RuntimeError(f"door {name} can't be opened, or its process ended between two cases:\n{_tail(folder)}")
    verdict = "crash" if lines.closed else "hang"
    if verdict == "hang":
        os.kill(child, signal.SIGABRT)  # its handler writes where it hangs into its log
        lines.next(limit)
    return [*results, Result(name, begun["number"], begun["what"], verdict, _tail(folder))]


class _Lines:
    """JSON, a line at a time, from a pipe."""

    def __init__(self, reader: int):
        self._reader, self._read, self.closed = reader, b"", False

    def next(self, seconds: float) -> dict | None:
        """The next line; None where none comes within so many seconds, or ever."""
        while b"\n" not in self._read:
            if not select.select([self._reader], [], [], seconds)[0]:
                return None
            data = os.read(self._reader, 1 << 16)
            if not data:
                self.closed = True
                return None
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)


def _tail(folder: pathlib.Path) -> str:
    """The last of what a child printed; of a crash from where Python says so."""
    text = (folder / "log").read_text(errors="replace")
    return text[max(text.rfind("Fatal Python error"), len(text) - 8_000, 0) :][:2_000]


def _be_child(make, folder, numbers, seed, writer: int) -> None:
    """Never returns."""
    try:
        _redirect(folder / "log")
        _limit_memory()
        faulthandler.enable()

        def tell(event: str, **about) -> None:
            os.write(writer, (json.dumps({"event": event, **about}) + "\n").encode())

        _run_cases(make(folder), numbers, seed, tell)
        tell("end")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _run_cases(door: Door, numbers: range, seed: int, tell: Callable) -> None:
    reference = prepare(door)
    for number in numbers:
        case = make_case(door, seed, number)
        about = {"number": number, "what": case.what[:300].encode("ascii", "backslashreplace").decode()}
        tell("begin", **about)
        found = judge(door, reference, case, on_error=lambda about=about: _log(about))
        tell("done", **about, verdict=found.verdict, detail=found.detail.encode("ascii", "backslashreplace").decode())


def _log(about: dict) -> None:
    print(about, file=sys.stderr)
    traceback.print_exc()


def _redirect(path: pathlib.Path) -> None:
    """Whatever the door prints goes into a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False, buffering=1)


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limit = used + _MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# -- what came out --


def count(results: Sequence[Result]) -> dict[str, collections.Counter]:
    """Verdicts of each door."""
    table: dict[str, collections.Counter] = {}
    for result in results:
        table.setdefault(result.door, collections.Counter())[result.verdict] += 1
    return table


def format_table(results: Sequence[Result]) -> str:
    """A line for each door, and one for all."""
    table = count(results)
    rows = [*table.items(), ("all", sum(table.values(), collections.Counter()))]
    lines = [f"{'door':<14}{'cases':>7}" + "".join(f"{name:>11}" for name in VERDICTS)]
    for name, found in rows:
        lines.append(f"{name:<14}{found.total():>7}" + "".join(f"{found[verdict]:>11}" for verdict in VERDICTS))
    return "\n".join(lines)


def list_faults(results: Sequence[Result], each: int = 1) -> str:
    """Of every kind of fault the first cases, with what a reproduction needs."""
    kinds: dict[tuple, list[Result]] = {}
    for result in results:
        if result.verdict in FAULTS:
            kinds.setdefault((result.door, result.verdict, _kind(result)), []).append(result)
    lines = []
    for (door, verdict, kind), found in sorted(kinds.items()):
        lines.append(f"{door}: {len(found)} x {verdict} {kind}")
        lines += [f"    --case {r.number}: {r.what[:120]} -> {r.detail[:200]}" for r in found[:each]]
    return "\n".join(lines)


def _kind(result: Result) -> str:
    """The place of a traceback; of other faults what was done, without its numbers."""
    if result.verdict == "traceback":
        return " ".join(result.detail.split()[:2])
    return " ".join(word for word in re.split(r"[^a-zA-Z_]+", result.what) if len(word) > 2)[:40]
