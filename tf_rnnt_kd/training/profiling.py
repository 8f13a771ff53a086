"""A trace of some steps, for TensorBoard's profiler."""

from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.progress import say


class Steps(NamedTuple):
    """Steps from the first to the last, both included; a run's first is 1."""

    first: int
    last: int


def parse_steps(text: str | None) -> Steps | None:
    """`"10,20"` -> `Steps(10, 20)`; None for None.

    Raises:
      UserError: if that is not what `text` looks like.
    """
    if text is None:
        return None
    try:
        first, last = map(int, text.split(","))
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise UserError(f"--profile {text}: give the first and the last step to trace, as in --profile 10,20")
    return Steps(first, last)


class Profiler:
    """Traces whole calls: those that hold the wanted steps.

    Args:
      folder: of TensorBoard events; None for who has nothing to write.
      steps: what is wanted; None for nothing.
    """

    def __init__(self, folder: str | None, steps: Steps | None):
        self._folder, self._steps, self._running = folder, steps if folder else None, False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop()

    def before(self, step: int, stop: int) -> None:
        """Called before the steps after `step` up to `stop` are taken."""
        wanted = self._steps is not None and self._steps.first <= stop and step < self._steps.last
        if wanted and not self._running:
            tf.profiler.experimental.start(self._folder)
            self._running = True

    def after(self, step: int, metrics: dict[str, tf.Tensor]) -> None:
        """Called when they are under way; waits for the last of them."""
        if self._running and step >= self._steps.last:
            next(iter(metrics.values())).numpy()
            self._stop()
            say(f"  traced steps {self._steps.first} to {step}: {self._folder}/plugins/profile")

    def _stop(self):
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
