"""Generations side by side: those that do not need each other run in processes of their own."""

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.plan import Generation, Plan
from tf_rnnt_kd.preemption import CHILD_CODE, Preempted
from tf_rnnt_kd.progress import BAR_POSITION

_PARENT = "TF_RNNT_KD_PARENT"  # environment: the process whose death ends a child

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h


class Job(NamedTuple):
    """One generation for one seed."""

    generation: Generation
    seed: int

    @property
    def name(self) -> str:
        """How a child is told which job is its own."""
        return f"{self.seed}/{self.generation.name}"


def list_jobs(plan: Plan) -> list[Job]:
    """All jobs, teachers before their students, seeds in turn."""
    return [Job(generation, seed) for generation in plan.generations for seed in plan.seeds]


def width(plan: Plan) -> int:
    """How many jobs can ever run at the same time."""
    depth = {}
    for generation in plan.generations:
        depth[generation.name] = depth[generation.teacher] + 1 if generation.teacher else 0
    levels = list(depth.values())
    return max(levels.count(level) for level in levels) * len(plan.seeds)


class Children(NamedTuple):
    """How to run jobs in processes of their own.

    Attributes:
      command: the command line of a job.
      at_once: how many run at the same time.
    """

    command: Callable[[Job], Sequence[str]]
    at_once: int


def choose_at_once(plan: Plan, wanted: int, strategy: str) -> int:
    """How many generations to train side by side: `wanted`, or for 0 one a core where there is no accelerator.

    A small model uses one core well and two badly. The number depends on the machine and the plan, never on what is
    left to do: with it goes the number of threads, and with that the last bits of every sum.
    """
    if wanted < 0:
        raise UserError(f"--jobs {wanted} is negative: give a number of generations, or 0 to let the machine decide")
    if strategy == "multiworker" and wanted > 1:
        raise UserError(f"--jobs {wanted} with --strategy multiworker: workers train one generation after the other")
    if wanted:
        return wanted
    if strategy not in ("auto", "one_device") or tf.config.list_physical_devices("GPU"):
        return 1
    return min(width(plan), num_cores())


def num_cores() -> int:
    """Cores of this process: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(at_once: int) -> None:
    """Gives each of `at_once` processes its share of the cores."""
    if at_once > 1:
        tf.config.threading.set_intra_op_parallelism_threads(max(1, num_cores() // at_once))
        tf.config.threading.set_inter_op_parallelism_threads(2)  # one more, so that input and step overlap


def keep_memory() -> None:
    """Tells glibc to keep freed memory instead of giving it back to the system after every step.

    TensorFlow's CPU allocator is malloc: by default each large tensor is mapped and its pages cleared anew, which costs
    a third of the time of the joint and its losses. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def run_jobs(jobs: Sequence[Job], command: Callable[[Job], Sequence[str]], at_once: int) -> None:
    """Runs each job in a child process as soon as its teacher is finished, `at_once` at a time.

    Raises:
      SystemExit: with the exit code of the first child that failed; the others are stopped, and save.
      Preempted: if a child was stopped by SIGTERM; the others are stopped too, and save.
    """
    waiting = list(jobs)
    running: dict[int, tuple[Job, subprocess.Popen]] = {}
    try:
        while waiting or running:
            for slot in [s for s in range(at_once) if s not in running]:
                job = next((job for job in waiting if _is_ready(job, waiting, running)), None)
                if job is not None:
                    waiting.remove(job)
                    running[slot] = job, _start(command(job), slot)
            _collect(running)
            time.sleep(0.1)
    finally:
        for _, child in running.values():
            child.terminate()
        for _, child in running.values():
            child.wait()


def _is_ready(job, waiting, running):
    unfinished = [*waiting, *(other for other, _ in running.values())]
    return not any(o.seed == job.seed and o.generation.name == job.generation.teacher for o in unfinished)


def _start(command, slot):
    environment = {**os.environ, _PARENT: str(os.getpid()), BAR_POSITION: str(slot)}
    return subprocess.Popen(command, env=environment)


def _collect(running):
    for slot, (_, child) in list(running.items()):
        code = child.poll()
        if code is not None:
            del running[slot]
            if code == CHILD_CODE:
                raise Preempted
            if code:
                raise SystemExit(code)  # the child has said why


def is_child() -> bool:
    """Whether this process does one job of a parent's."""
    return _PARENT in os.environ


def end_with_parent() -> None:
    """In a child: leaves as soon as the parent is gone, even killed, so that a new start finds the field clear."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return

    def watch():
        while os.getppid() == int(parent):
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def find_job(plan: Plan, name: str) -> Job:
    """The job that a child was told to do."""
    found = next((job for job in list_jobs(plan) if job.name == name), None)
    if found is None:
        raise UserError(f"the plan has no generation {name!r}: there are {', '.join(j.name for j in list_jobs(plan))}")
    return found
