"""The state of a training run on disk: everything that decides the next step, and nothing else."""

import json
import os
import re

import tensorflow as tf

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.progress import say

_KEEP = 2


class TrainingCheckpoint:
    """Saves and restores model, optimizer, random state and step, bit for bit.

    `tf.train.Checkpoint(model=…)` would silently drop what Keras 3 does not track (layers in lists, dropout seeds), so
    the variables are handed over as flat lists. Lists match by position: `layout.json` beside them holds each
    variable's path and shape, and a model that differs is refused. The input needs no state: its position is the step.

    Args:
      folder: of the checkpoints.
      model: built.
      optimizer: built on the model's trainable variables.
    """

    def __init__(self, folder: str, model, optimizer):
        self.folder = folder
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)  # spent training, over all starts
        # Keras numbers its seed generators over the whole process: the same model has other numbers after a restart.
        paths = [re.sub(r"seed_generator_\d+", "seed_generator", v.path) for v in model.variables]
        self._layout = [[path, list(v.shape), v.dtype] for path, v in zip(paths, model.variables, strict=True)]
        self._checkpoint = tf.train.Checkpoint(
            model=[v.value for v in model.variables],
            optimizer=[v.value for v in optimizer.variables],
            step=self.step,
            seconds=self.seconds,
        )
        self._manager = tf.train.CheckpointManager(self._checkpoint, folder, max_to_keep=_KEEP)

    def save(self, step: int, seconds: float) -> None:
        """Writes a checkpoint; the one before stays until it is complete."""
        self.step.assign(step)
        self.seconds.assign(seconds)
        layout = os.path.join(self.folder, "layout.json")
        if not os.path.exists(layout):
            os.makedirs(self.folder, exist_ok=True)
            with open(layout + ".tmp", "w", encoding="utf-8") as file:
                json.dump(self._layout, file)
            os.replace(layout + ".tmp", layout)
        try:
            self._manager.save(checkpoint_number=step)
        except tf.errors.ResourceExhaustedError as error:
            raise UserError(f"no room for a checkpoint in {self.folder}: make room and start again") from error

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read and returns its step; 0 if there is none.

        Raises:
          UserError: if the checkpoints are of another architecture, or none of them can be read.
        """
        paths = self._manager.checkpoints
        if not paths:
            return 0
        self._check_layout()
        for path in reversed(paths):
            try:
                self._checkpoint.restore(path).assert_consumed()
            except (tf.errors.OpError, AssertionError, IndexError, RuntimeError):  # the reader raises all of them
                say(f"  {path} is damaged and left aside")
                continue
            return int(self.step.numpy())
        raise UserError(f"no checkpoint in {self.folder} can be read: delete the folder to train from the start")

    def _check_layout(self):
        path = os.path.join(self.folder, "layout.json")
        try:
            with open(path, encoding="utf-8") as file:
                stored = json.load(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read ({error}): delete the folder to train from the start") from error
        for old, new in zip(stored, self._layout, strict=False):
            if old != new:
                raise UserError(
                    f"the checkpoint in {self.folder} is of another architecture: {old[0]} {old[1]} there, "
                    f"{new[0]} {new[1]} here; delete the folder or restore the config"
                )
        if len(stored) != len(self._layout):
            raise UserError(
                f"the checkpoint in {self.folder} is of another architecture: {len(stored)} variables there, "
                f"{len(self._layout)} here; delete the folder or restore the config"
            )
