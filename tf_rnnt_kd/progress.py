"""How far a long job is: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time

from tqdm import tqdm

BAR_POSITION = "TF_RNNT_KD_BAR"  # environment: the screen line of a child process's bar, below its parent's


def say(line: str) -> None:
    """Prints a line, above the bars if there are any."""
    with tqdm.external_write_mode():
        print(line, flush=True)


def format_seconds(seconds: float) -> str:
    """`75 -> 01:15`, `3700 -> 1:01:40`."""
    return tqdm.format_interval(max(0, round(seconds)))


class Progress:
    """Reports `done` of `total` with the time left; a context manager that ends its line on leaving.

    Args:
      name: what is being done.
      total: how many units there are.
      unit: the word for one.
      done: units finished by an earlier run: they count towards the total, not towards the speed.
      interval: seconds between lines, at least; 0 for one an update.
    """

    def __init__(self, name: str, total: int, unit: str, done: int = 0, *, interval: float = 20.0):
        self.name, self.total, self.unit, self._interval = name, total, unit, interval
        self._first, self._start, self._printed = done, time.monotonic(), time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            position = int(os.environ.get(BAR_POSITION, "0"))
            self._bar = tqdm(
                desc=name,
                total=total,
                initial=done,
                unit=f" {unit}",
                position=position,
                dynamic_ncols=True,
                leave=False,
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, note: str = "") -> None:
        """Says that `done` units are finished, with a short note such as the current loss."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._printed >= self._interval:
            self._printed = time.monotonic()
            say(f"  {self.name}: {done}/{self.total} {self.unit}, {self._left(done)} left  {note}".rstrip())

    def _left(self, done):
        speed = (done - self._first) / max(time.monotonic() - self._start, 1e-9)
        return format_seconds((self.total - done) / speed) if speed > 0 else "?"
