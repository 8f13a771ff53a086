"""How long steps take, by the host's clock."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf


class Stopwatch:
    """Times the calls of a training, and what lies between two reports.

    A call of steps of one bucket gives a time of that bucket, waiting for input included, if the host sees it end: it
    always does on a CPU. An accelerator is asked for the end of the first call after a report alone, where it has
    nothing else to do, as waiting costs the host its lead. The first call of each shape, which compiles, is left out.

    Args:
      bucket: [N] bucket of each step.
      seconds: longest utterance of each bucket.
    """

    def __init__(self, bucket: np.ndarray, seconds: tuple[float, ...]):
        self._bucket, self._seconds = bucket, seconds
        self._ahead = bool(tf.config.list_physical_devices("GPU") or tf.config.list_logical_devices("TPU"))
        self._known: set[int] = set()
        self._begin()

    def _begin(self):
        self._start, self._paused, self._idle = time.monotonic(), 0.0, True
        self._times: dict[int, list[float]] = {}

    def time(self, call, step: int, stop: int):
        """What `call()` returns, metrics [n], which takes the steps after `step` up to `stop`."""
        start = time.monotonic()
        metrics = call()
        buckets = set(self._bucket[step:stop].tolist())
        new = buckets - self._known
        self._known |= buckets
        if len(buckets) == 1 and not new and (self._idle or not self._ahead):
            next(iter(metrics.values())).numpy()
            self._times.setdefault(buckets.pop(), []).append((time.monotonic() - start) / (stop - step))
        self._idle = False
        return metrics

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """What is done inside is no training."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds of training since the last lap, and seconds a step of each bucket that was timed, by its name."""
        elapsed = time.monotonic() - self._start - self._paused
        times = {f"bucket_{self._seconds[k]:g}s": float(np.mean(v)) for k, v in sorted(self._times.items())}
        self._begin()
        return elapsed, times
