"""A plan that is killed at random moments and started again, until it ends: `python -m tests.nst.lives FOLDER SEED`.

A program of its own, because only a process in which TensorFlow is imported but has not started yet may fork; each life
is a fork of it, which spares the import. A life ends by `kill -9` a random time after a random number of events: steps,
starts of stages, writes. Prints what the kills hit, and what an undisturbed run and the killed ones left, as JSON.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

from tests import tiny
from tests.nst import test_run
from tf_rnnt_kd.nst import run
from tf_rnnt_kd.nst.plan import Plan
from tf_rnnt_kd.progress import Progress
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.strategy import make_strategy

_STAGES = ("prepare", "train", "label_folder", "evaluate_checkpoint", "save_model", "report")  # as `nst.run` knows them
_WRITES = ("checkpoints", "labels", "records", "results.json", "hypotheses-test.tsv", "weights.npz", "model.json")
WANTED = {"train", "label_folder", "evaluate_checkpoint", "write checkpoints", "write labels", "write results.json"}
_KILLS, _MOST_RUNS = 20, 4
_STAGE_SECONDS = 1.0  # from the start of a stage within which it is killed
_SLOWNESS = 0.02  # seconds that a write takes longer, so that it is hit


def make_plan() -> Plan:
    """A teacher and a student of its lattices; steps that are reported one by one, and checkpoints at most of them."""
    every = {"report_every": 1, "checkpoint_every": 2, "evaluate_every": 3}
    training = tiny.training(6, rate_steps=6, peak=1e-6, labelled_fraction=0.3, **every)
    plan = test_run.make_plan()
    teacher, student = (dataclasses.replace(generation, training=training) for generation in plan.generations)
    teacher = dataclasses.replace(teacher, objective=Objective(ctc_weight=0.0))
    student = dataclasses.replace(student, model=tiny.transducer, objective=Objective(kl_weight=0.01, ctc_weight=0.0))
    return dataclasses.replace(plan, generations=[teacher, student], comparisons=())


class Life:
    """Counts events, knows what is being done, and ends the process a little after the last event it may see.

    Args:
      events: to live through; None for all.
      missing: what no life ended in yet: this one ends in the first of them that it comes to.
      moment: in [0, 1): how late after the last event the end comes, in units of what such an event may take.
      epitaphs: file to which the end adds what it interrupted.
    """

    def __init__(self, events: int | None, missing: set[str], moment: float, epitaphs: pathlib.Path):
        self.events, self.missing, self.moment, self.epitaphs = events, missing, moment, epitaphs
        self.doing, self.lock = ["start"], threading.Lock()

    def happen(self, name, seconds):
        with self.lock:
            if self.events is None or self.events <= 0:
                return
            self.events = 0 if name in self.missing else self.events - 1
            if self.events == 0:
                threading.Timer(self.moment * seconds, self.end).start()

    def end(self):
        with open(self.epitaphs, "a", encoding="utf-8") as file:
            file.write(self.doing[-1] + "\n")
        os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def stage(self, name, seconds):
        self.doing.append(name)
        self.happen(name, seconds)
        try:
            yield
        finally:
            self.doing.remove(name)

    def watch(self):
        for name in _STAGES:
            setattr(run, name, self.watched(name, getattr(run, name)))
        update, fsync = Progress.update, os.fsync

        def reported(*args):
            update(*args)
            self.happen("step", _SLOWNESS)

        def slow_fsync(handle):
            path = os.readlink(f"/proc/self/fd/{handle}")
            with self.stage(next((f"write {part}" for part in _WRITES if part in path), "write"), _SLOWNESS):
                time.sleep(_SLOWNESS)
                fsync(handle)

        Progress.update, os.fsync = reported, slow_fsync

    def watched(self, name, function):
        @functools.wraps(function)
        def watched(*args, **options):
            with self.stage(name, _STAGE_SECONDS):
                return function(*args, **options)

        return watched


def live(work_dir: pathlib.Path, life: Life) -> int:
    """Runs the plan in a fork; returns how it ended."""
    child = os.fork()
    if not child:
        code = 1
        try:
            life.watch()
            run.run_plan(run.Start(make_plan(), str(work_dir)), lambda: make_strategy("one_device"), None)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left_by(work_dir: pathlib.Path) -> dict[str, str]:
    """sha256 of what has to be equal, to the bit: weights, optimizers, records, labels, hypotheses, results."""
    found = {}
    for path in sorted(work_dir.rglob("*")):
        if path.name in ("weights.npz", "model.json", "results.json") or path.suffix in (".tfrecord", ".data", ".tsv"):
            found[str(path.relative_to(work_dir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main(folder: str, seed: int) -> None:
    """Kills one run after the other until there were enough kills and everything was hit."""
    folder, rng, ends = pathlib.Path(folder), random.Random(seed), []
    epitaphs = folder / "epitaphs"
    epitaphs.touch()
    assert live(folder / "undisturbed", Life(None, set(), 0.0, epitaphs)) == 0
    hits = collections.Counter()
    while hits.total() < _KILLS or WANTED - set(hits):
        assert len(ends) < _MOST_RUNS, hits
        work_dir = folder / f"killed-{len(ends)}"
        while True:
            events = rng.randint(1, 25) if hits.total() < _KILLS else 10_000
            code = live(work_dir, Life(events, WANTED - set(hits), rng.random(), epitaphs))
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            hits = collections.Counter(epitaphs.read_text().splitlines())
        ends.append(left_by(work_dir))
    print(json.dumps({"hits": hits, "undisturbed": left_by(folder / "undisturbed"), "killed": ends}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
