"""The state of a training run on disk: everything that decides the next step, and nothing else."""

import math
import re
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.progress import say
from tf_rnnt_kd.training.checkpoint_files import (
    Damaged,
    Tensor,
    clear_remains,
    data_path,
    find_steps,
    read_header,
    read_values,
    remove_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)


class TrainingCheckpoint:
    """Saves and restores model, optimizer, random state and step, bit for bit. A context manager that ends all writing.

    Keras 3 does not track all of it (layers in lists, dropout seeds), so the variables are flat lists, matched by
    position: their names and shapes are stored too, and a model that differs is refused.

    A save takes a copy between two steps, one state more of host memory; a thread writes and verifies it while training
    goes on. The next save waits for it and tells what went wrong.

    Args:
      folder: of the checkpoints.
      model: built.
      optimizer: built on the model's trainable variables.
      keep: how many of the newest stay; besides them, the best on the development set.
      writes: whether this process writes; of several workers one does, the others only read.
    """

    def __init__(self, folder: str, model, optimizer, *, keep: int = 2, writes: bool = True):
        self.folder, self.seconds = folder, 0.0  # spent training, over all starts
        # Keras numbers its seed generators and optimizers over the whole process: a restart has other numbers.
        names = [re.sub(r"seed_generator_\d+", "seed_generator", v.path) for v in model.variables]
        self._names = names + [f"optimizer/{v.path.partition('/')[2]}" for v in optimizer.variables]
        self._variables = [v.value for v in (*model.variables, *optimizer.variables)]
        self._keep, self._writes, self._best, self._damaged = keep, writes, math.inf, set()
        self._thread, self._pending = ThreadPoolExecutor(1), Future()
        self._pending.set_result(None)

    def __enter__(self):
        return self

    def __exit__(self, exception_type, *exception):
        self._thread.shutdown()
        if exception_type is None:
            self.wait()

    def is_best(self, wer: float | None) -> bool:
        """Whether no checkpoint is as good on the development set."""
        return wer is not None and wer < self._best

    def save(self, step: int, seconds: float, wer: float | None = None) -> None:
        """Copies the state; a thread writes it. Older checkpoints stay until it is complete and verified.

        Args:
          step: of the run.
          seconds: spent training.
          wer: on the development set, where this step was evaluated.

        Raises:
          UserError: if the save before this one failed.
        """
        if not self._writes:
            return
        self.wait()
        self._best = wer if self.is_best(wer) else self._best
        values = [variable.numpy() for variable in self._variables]
        self._pending = self._thread.submit(self._write, step, values, seconds=seconds, wer=wer)

    def wait(self) -> None:
        """Waits for the last save.

        Raises:
          UserError: if it failed.
        """
        self._pending.result()

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read and returns its step; 0 if there is none.

        Raises:
          UserError: if the checkpoints are of another architecture, or none of them can be read.
        """
        steps = find_steps(self.folder)
        if self._writes:
            clear_remains(self.folder)
        for step in reversed(steps):
            try:
                self._restore(step)
            except Damaged as error:
                say(f"  {data_path(self.folder, step)} is damaged ({error}) and left aside")
                self._damaged.add(step)
                continue
            if self._writes:
                self._prune(spared=self._damaged)
            self._best = min((wer for wer, _ in self._evaluated()), default=math.inf)
            return step
        if steps:
            raise UserError(f"no checkpoint in {self.folder} can be read: delete the folder to train from the start")
        return 0

    def restore_best(self) -> tuple[float, int]:
        """Restores the checkpoint with the lowest word error rate on the development set; returns it and the step.

        Raises:
          UserError: if there is none, or it is damaged.
        """
        self.wait()
        if not self._evaluated():
            raise UserError(f"no checkpoint in {self.folder} was evaluated: hand on the last one")
        wer, step = min(self._evaluated())
        try:
            self._restore(step)
        except Damaged as error:
            path = data_path(self.folder, step)
            raise UserError(f"{path}, the best, is damaged ({error}): hand on the last one, or train again") from error
        return wer, step

    def _restore(self, step):
        header = verify_checkpoint(self.folder, step)
        self._check_layout(header["tensors"])
        values = read_values(self.folder, step, header["tensors"])
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        self.seconds = header["seconds"]

    def _write(self, step: int, values: list[np.ndarray], **about) -> None:
        again = "mend that and start again; earlier checkpoints are whole"
        try:
            write_checkpoint(self.folder, step, self._names, values, **about)
        except OSError as error:
            raise UserError(f"no checkpoint of step {step} in {self.folder}: {error.strerror}; {again}") from error
        except Damaged as error:
            remove_checkpoint(self.folder, step)
            raise UserError(
                f"the disk of {self.folder} garbled the checkpoint of step {step} ({error}); {again}"
            ) from error
        self._damaged.discard(step)
        self._prune()

    def _prune(self, spared=()):
        """Keeps the newest and the best; what a restart found damaged goes when there is a new one in its place."""
        steps = find_steps(self.folder)
        newest = [step for step in steps if step not in self._damaged][-self._keep :]
        best = [step for _, step in sorted(self._evaluated())[:1]]
        for step in {*steps} - {*newest, *best, *spared}:
            remove_checkpoint(self.folder, step)

    def _evaluated(self) -> list[tuple[float, int]]:
        """(word error rate, step) of the checkpoints that have one."""
        found = []
        for step in find_steps(self.folder):
            try:
                found.append((read_header(self.folder, step)["wer"], step))
            except Damaged:
                continue
        return [(wer, step) for wer, step in found if wer is not None and step not in self._damaged]

    def _check_layout(self, stored: list[Tensor]) -> None:
        ours = [(n, v.shape.as_list(), v.dtype.name) for n, v in zip(self._names, self._variables, strict=True)]
        where = f"the checkpoint in {self.folder} is of another architecture"
        remedy = "delete the folder or restore the config"
        for theirs, own in zip(stored, ours, strict=False):
            if tuple(theirs[:3]) != own:
                raise UserError(f"{where}: {theirs.name} {theirs.shape} there, {own[0]} {own[1]} here; {remedy}")
        if len(stored) != len(ours):
            raise UserError(f"{where}: {len(stored)} variables there, {len(ours)} here; {remedy}")
