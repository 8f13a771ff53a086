"""What fits a TPU: shapes of batches, answers of its compiler, and the search for the largest batch."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tf_rnnt_kd.errors import UserError

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_LOWERING, _COMPILER = (_ROOT / "tools" / f"tpu_{name}.py" for name in ("lowering", "compiler"))
ENVIRONMENT = _ROOT / ".venv-tpu"
TRAIN = "train"  # the part of a plan that is a training step; any other is the beam of a search: "1", "8"
# HBM that the compiler gives a core, in GiB. These are the kinds there are; from the sizes only guesses
# follow: the compiler decides.
_HBM = {"v3": 15.48, "v4": 15.25, "v5e": 15.75, "v5p": 95.0, "v6e": 31.24}


class Shape(NamedTuple):
    """Of a batch on one core."""

    batch: int
    seconds: float

    def __str__(self):
        return f"{self.batch} x {self.seconds:g} s"


@dataclasses.dataclass
class Answer:
    """What the compiler said of a program: bytes, or the words of its refusal."""

    numbers: dict

    @property
    def refused(self) -> str | None:
        """Why the program does not fit, None if it does."""
        return self.numbers.get("refused")

    @property
    def total(self) -> float:
        """Bytes of HBM while it runs."""
        n = self.numbers
        return n["arguments"] + n["outputs"] - n["aliased"] + n["temporaries"] + n["code"]

    def __str__(self):
        if self.refused:
            return f"refused: {self.refused}"
        sizes = [f"{self.numbers[name] / 1e9:6.2f} GB {name}" for name in ("arguments", "temporaries")]
        return f"{', '.join(sizes)}, {self.total / 1e9:6.2f} GB in all, {self.numbers['flops'] / 1e12:7.2f} TFLOP"


def next_batch(fits: dict[int, float], refused: set[int], available: float) -> int | None:
    """Which batch to try next, on the way to the largest that fits; None when it is known.

    Bytes grow nearly linearly with the batch, so a line through the two largest that fit says where they end.

    Args:
      fits: bytes of the batches that fit.
      refused: batches that don't.
      available: bytes, about.
    """
    low, high = max(fits, default=0), min(refused, default=None)
    if high is not None and high <= low + 1:
        return None
    guess = 2 * low
    if len(fits) > 1:
        before, last = sorted(fits)[-2:]
        slope = (fits[last] - fits[before]) / (last - before)
        guess = last + int((available - fits[last]) // slope) if slope > 0 else guess
    if high is not None and not low < guess < high:
        guess = (low + high) // 2  # a line that errs may not lead through all batches one by one
    return max(low + 1, guess)


def core_shapes(buckets) -> list[Shape]:
    """What one of `batch_multiple` cores has of each bucket's batch."""
    sizes = [buckets.batch_size(k) // buckets.batch_multiple for k in range(len(buckets.seconds))]
    return [Shape(*pair) for pair in zip(sizes, buckets.seconds, strict=True)]


def read_shape(text: str) -> Shape:
    """`4x16` -> 4 utterances of 16 s."""
    batch, _, seconds = text.partition("x")
    try:
        shape = Shape(int(batch), float(seconds))
    except ValueError:
        shape = Shape(0, 0.0)
    if shape.batch < 1 or not shape.seconds > 0.0:
        raise UserError(f"--shape {text!r} is not BATCHxSECONDS, as in 4x16")
    return shape


def check_topology(topology: str) -> None:
    """Refuses what is no topology before anything is built for it."""
    kind, _, size = topology.partition(":")
    if kind not in _HBM or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", size):
        raise UserError(f"--topology {topology!r} is none: give one of {', '.join(_HBM)} with its size, as in v4:2x2x1")


def ensure_compiler() -> None:
    """Installs constraints-tpu.txt into ./.venv-tpu, where it is not installed yet."""
    pins = _ROOT / "constraints-tpu.txt"
    stamp = ENVIRONMENT / ".installed"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return
    print(f"installing the TPU compiler into {ENVIRONMENT.name} (1.1 GB)", flush=True)
    python = ENVIRONMENT / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", pins]
    for command in ([sys.executable, "-m", "venv", ENVIRONMENT], install):
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"the TPU compiler could not be installed: {_last_line(done.stderr)}")
    stamp.write_text(pins.read_text())


class Compiler:
    """Programs and answers of one configuration, each made once.

    Args:
      folder: of what is kept.
      config: gin file of the plan.
      params: its overrides.
      text: the resolved configuration.
      labels_per_second: room for labels.
    """

    def __init__(self, folder: pathlib.Path, config: str, params: Sequence[str], text: str, labels_per_second: float):
        self.folder, self.config, self.params, self.labels_per_second = folder, config, params, labels_per_second
        sources = [*sorted((_ROOT / "tf_rnnt_kd").rglob("*.py")), _LOWERING, _COMPILER]
        self.version = hashlib.sha256(b"".join([text.encode(), *(path.read_bytes() for path in sources)])).hexdigest()
        self.known: dict[tuple, dict[int, float]] = {}  # bytes of batches that fit some topology
        folder.mkdir(parents=True, exist_ok=True)

    def show(self, generation: str, part: str, shape: Shape, topology: str) -> Answer:
        """Compiles, and prints a line."""
        answer = self.compile(generation, part, shape, topology)
        name = {TRAIN: "step", "1": "greedy search"}.get(part, f"beam of {part}")
        effort = f"[{answer.numbers['seconds']:.0f} s, {answer.numbers['peak'] / 1e9:.1f} GB]"
        print(f"  {topology:9} {name:13} {shape!s:12} {answer}   {effort}", flush=True)
        return answer

    def find_largest(self, generation: str, shape: Shape, topology: str) -> int:
        """Searches the largest batch of such utterances, from that of `shape`, and prints it."""
        available = _HBM.get(topology.partition(":")[0], 16.0) * 2**30
        known = self.known.setdefault((generation, shape.seconds), {})
        fits, refused, batch = {}, set(), shape.batch
        while batch is not None:
            answer = self.show(generation, TRAIN, shape._replace(batch=batch), topology)
            if answer.refused:
                refused.add(batch)
            else:
                fits[batch] = known[batch] = answer.total
            # Other topologies take nearly the same: what they took of smaller batches tells the slope.
            line = {b: total for b, total in known.items() if b <= max(fits, default=0)}
            batch = next_batch(line, refused, available)
        largest = max(fits, default=0)
        hbm = f"(of about {available / 1e9:.1f} GB)"
        print(f"  {topology:9} largest batch a core: {largest} x {shape.seconds:g} s {hbm}", flush=True)
        return largest

    def compile(self, generation: str, part: str, shape: Shape, topology: str) -> Answer:
        """The answer of the compiler, from the cache if it was given before."""
        program = {
            "config": self.config,
            "params": self.params,
            "generation": generation,
            "part": part,
            "batch": shape.batch,
            "frames": math.ceil(shape.seconds * 25),
            "labels": math.ceil(shape.seconds * self.labels_per_second) if part == TRAIN else 0,
        }
        key = hashlib.sha256(json.dumps([self.version, program], sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{key}.stablehlo"
        kept = self.folder / f"{key}-{topology.replace(':', '-')}.json"
        if kept.exists():
            return Answer(json.loads(kept.read_text()))
        print(f"  compiling {generation}, {part}, {shape} for {topology}", file=sys.stderr, flush=True)
        lowered = {"seconds": 0.0, "peak": 0.0}
        if not path.exists():
            lowered = _run(sys.executable, _LOWERING, json.dumps(program), path)
        numbers = _run(ENVIRONMENT / "bin" / "python", _COMPILER, path, topology)
        if "failed" in numbers:
            where = f"{topology}, {generation}, {part}, {shape}"
            raise UserError(f"the TPU compiler failed for {where}: {numbers['failed']}")
        numbers["seconds"] += lowered["seconds"]
        numbers["peak"] = max(numbers["peak"], lowered["peak"])
        unfinished = kept.with_suffix(".tmp")
        unfinished.write_text(json.dumps(numbers))
        unfinished.replace(kept)
        return Answer(numbers)


def _run(*command) -> dict:
    """The last line of a process, which is JSON."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        why = "killed, perhaps for memory" if done.returncode < 0 else _last_line(done.stderr)
        raise UserError(f"{pathlib.Path(command[1]).name} failed: {why}")
    return json.loads(done.stdout.splitlines()[-1])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
