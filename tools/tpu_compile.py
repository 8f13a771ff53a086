"""Compiles a plan's training steps and searches with the TPU compiler, without a TPU, and says what fits.

    python tools/tpu_compile.py --config configs/libri_nst.gin --topology v4:2x2x1,v5p:2x2x1 \
      --param 'LIBRISPEECH=""' --param 'LIBRILIGHT=""'
    python tools/tpu_compile.py --config configs/libri_nst.gin … --shape 512x16     # the compiler's refusal

For each generation (those with equal steps once): the step at the bucket of the longest utterances, memory, operations,
and by search the largest batch a core that still compiles; then the searches that label. A program is compiled for one
core, as the only replica: the sum over replicas (one gradient's size through the network a step) is not in it.

Programs and the compiler's answers are kept in --cache, so that a stopped run goes on. The compiler is installed into
./.venv-tpu (constraints-tpu.txt, about 1.1 GB). It is libtpu through private interfaces of JAX; nothing is executed.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_TOPOLOGIES = ["v3:2x2x1", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
_CONFIG = flags.DEFINE_string("config", None, "Gin file of the plan.", required=True)
_PARAM = flags.DEFINE_multi_string("param", [], "Overrides a macro or binding of the config: NAME=value.")
_TOPOLOGY = flags.DEFINE_list("topology", _TOPOLOGIES, "What to compile for.")
_GENERATION = flags.DEFINE_multi_string("generation", [], "Only this one; may be repeated.")
_SHAPE = flags.DEFINE_list("shape", [], "BATCHxSECONDS on one core, in place of the longest bucket and of a search.")
_ALL_BUCKETS = flags.DEFINE_bool("all_buckets", False, "Also the buckets of shorter utterances.")
_LABELS = flags.DEFINE_float("labels_per_second", 6.0, "Room for labels, where only the records can tell.")
_BEAM = flags.DEFINE_list("beam", ["1", "8"], "Searches to compile, by their beam; 1 is greedy search. Empty: none.")
_CACHE = flags.DEFINE_string("cache", "runs/tpu_compile", "Folder of programs and answers.")

_ENVIRONMENT = _ROOT / ".venv-tpu"
# HBM that the compiler gives a core, in bytes. Only guesses follow from it: the compiler decides.
_HBM = {"v3": 15.48, "v4": 15.25, "v5e": 15.75, "v5p": 95.0, "v6e": 31.24}
_LABEL_SECONDS = 120.0  # of audio that a labeller takes at a time


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
    if len(fits) > 1:
        before, last = sorted(fits)[-2:]
        slope = (fits[last] - fits[before]) / (last - before)
        guess = last + int((available - fits[last]) // slope) if slope > 0 else 2 * low
    else:
        guess = 2 * low or (high or 2) // 2
    return max(low + 1, guess if high is None else min(guess, high - 1))


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


def main(argv):
    """Compiles what the flags ask for, and exits with 1 if a plan's own batch, or a --shape, does not fit."""
    del argv
    from tf_rnnt_kd import config

    plan, text = config.load_plan(_CONFIG.value, _PARAM.value)
    shapes = [read_shape(shape) for shape in _SHAPE.value]
    groups = list(_distinct(plan))
    ensure_compiler()
    compiler = Compiler(pathlib.Path(_CACHE.value), text)
    print(f"{plan.name}: HBM of one core; a program is compiled as the only replica, without the sum over replicas")
    unfit = 0
    for names, generation, model_words in groups:
        print(f"\n{', '.join(names)}: {model_words}", flush=True)
        own = core_shapes(generation.training.buckets)
        for topology in _TOPOLOGY.value:
            for shape in shapes or (own if _ALL_BUCKETS.value else own[-1:]):
                unfit += compiler.show(generation.name, "train", shape, topology).refused is not None
            if not shapes:
                compiler.find_largest(generation.name, own[-1], topology)
            for beam in _BEAM.value:
                rows = max(1, int(_LABEL_SECONDS / own[-1].seconds))
                compiler.show(generation.name, beam, Shape(rows, own[-1].seconds), topology)
    sys.exit(1 if unfit else 0)


def _distinct(plan) -> Iterator[tuple]:
    """(names, one generation, what it is in words) of those whose steps are equal."""
    from tools.tpu_lowering import build, vocabulary_of, weightless

    wanted = _GENERATION.value or [generation.name for generation in plan.generations]
    unknown = sorted(set(wanted) - {generation.name for generation in plan.generations})
    if unknown:
        raise UserError(f"--generation {unknown[0]!r} is none of: {', '.join(g.name for g in plan.generations)}")
    groups = {}
    for generation in (g for g in plan.generations if g.name in wanted):
        with weightless():
            model = build(generation, vocabulary_of(plan))
        key = json.dumps(model.get_config(), sort_keys=True, default=str), generation.codec, generation.targets_dtype
        key += repr(generation.objective), repr(dataclasses.replace(generation.training, learning_rate=None))
        remat = ", rematerialised" if model.encoder.rematerialise else ""
        words = f"{model.count_params() / 1e6:.1f} M weights, {generation.training.precision}{remat}"
        groups.setdefault(key, ([], generation, f"{words}, {generation.objective.summary}"))[0].append(generation.name)
    yield from groups.values()


def ensure_compiler() -> None:
    """Installs constraints-tpu.txt into ./.venv-tpu, where it is not installed yet."""
    pins = _ROOT / "constraints-tpu.txt"
    stamp = _ENVIRONMENT / ".installed"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return
    print(f"installing the TPU compiler into {_ENVIRONMENT.name} (1.1 GB)", flush=True)
    python = _ENVIRONMENT / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", pins]
    for command in ([sys.executable, "-m", "venv", _ENVIRONMENT], install):
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"the TPU compiler could not be installed: {_last_line(done.stderr)}")
    stamp.write_text(pins.read_text())


class Compiler:
    """Programs and answers of one configuration, each made once.

    Args:
      folder: of what is kept.
      text: the resolved configuration.
    """

    def __init__(self, folder: pathlib.Path, text: str):
        self.folder = folder
        sources = sorted((_ROOT / "tf_rnnt_kd").rglob("*.py")) + sorted((_ROOT / "tools").glob("tpu_*er*.py"))
        self.version = hashlib.sha256(b"".join([text.encode(), *(path.read_bytes() for path in sources)])).hexdigest()
        self.lines: dict[tuple, dict[int, float]] = {}  # what batches took on any topology
        folder.mkdir(parents=True, exist_ok=True)

    def show(self, generation: str, part: str, shape: Shape, topology: str) -> Answer:
        """Compiles, and prints a line."""
        answer = self.compile(generation, part, shape, topology)
        name = {"train": "step", "1": "greedy search"}.get(part, f"beam of {part}")
        effort = f"[{answer.numbers['seconds']:.0f} s, {answer.numbers['peak'] / 1e9:.1f} GB]"
        print(f"  {topology:9} {name:13} {shape!s:12} {answer}   {effort}", flush=True)
        return answer

    def find_largest(self, generation: str, shape: Shape, topology: str) -> None:
        """Searches the largest batch of such utterances, and prints it with the refusal of the next."""
        available = _HBM.get(topology.partition(":")[0], 16.0) * 2**30
        known = self.lines.setdefault((generation, shape.seconds), {})
        fits, refused = {}, set()
        batch = next_batch(known, set(), available) if len(known) > 1 else shape.batch
        while batch is not None:
            answer = self.show(generation, "train", shape._replace(batch=batch), topology)
            if answer.refused:
                refused.add(batch)
            else:
                fits[batch] = known[batch] = answer.total
            # What other topologies took tells the slope.
            line = {b: total for b, total in known.items() if b <= max(fits, default=0)} | fits
            batch = next_batch(line if fits else {}, refused, available)
        print(f"  {topology:9} largest batch a core: {max(fits, default=0)} x {shape.seconds:g} s", flush=True)

    def compile(self, generation: str, part: str, shape: Shape, topology: str) -> Answer:
        """The answer of the compiler, from the cache if it was given before."""
        program = {
            "config": _CONFIG.value,
            "params": _PARAM.value,
            "generation": generation,
            "part": part,
            "batch": shape.batch,
            "frames": math.ceil(shape.seconds * 25),
            "labels": math.ceil(shape.seconds * _LABELS.value) if part == "train" else 0,
        }
        key = hashlib.sha256(json.dumps([self.version, program], sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{key}.stablehlo"
        kept = self.folder / f"{key}-{topology.replace(':', '-')}.json"
        if kept.exists():
            return Answer(json.loads(kept.read_text()))
        lowered = {"seconds": 0.0, "peak": 0.0}
        if not path.exists():
            lowered = _run(sys.executable, _ROOT / "tools" / "tpu_lowering.py", json.dumps(program), path)
        numbers = _run(_ENVIRONMENT / "bin" / "python", _ROOT / "tools" / "tpu_compiler.py", path, topology)
        if "failed" in numbers:
            where = f"{topology}, {generation}, {part}, {shape}"
            raise UserError(f"the TPU compiler failed for {where}: {numbers['failed']}")
        numbers["seconds"] += lowered["seconds"]
        numbers["peak"] = max(numbers["peak"], lowered["peak"])
        kept.write_text(json.dumps(numbers))
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


if __name__ == "__main__":
    run_command(main)
