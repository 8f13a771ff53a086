"""Whether memory will do for a whole utterance in a model with full context, where attention grows with its square."""

import contextlib
import os
import resource
from collections.abc import Iterator

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import FRAME_STEP, SAMPLE_RATE
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import Transducer

# Measured: in bytes, what each head of one layer has at once of each pair of frames, two float32 and a little more.
_PER_SCORE = 9
_PER_SAMPLE = 64  # features, spectra and the activations of a layer
_UNLIMITED = 1 << 60


def bytes_per_square_frame(model: Transducer) -> int:
    """What a whole utterance takes, in bytes, over the square of its frames of 40 ms; 0 where nothing is squared."""
    return 0 if model.causal else _PER_SCORE * model.encoder.num_heads


def check_memory(per_square_frame: int, num_samples: int) -> None:
    """Refuses audio that would not fit into free memory, before anything is allocated.

    Args:
      per_square_frame: of `bytes_per_square_frame`.
      num_samples: of the utterance.

    Raises:
      UserError: it does not fit.
    """
    needed = per_square_frame * (num_samples / (FRAME_STEP * REDUCTION)) ** 2 + _PER_SAMPLE * num_samples
    free = free_bytes()
    if per_square_frame and needed > free:
        raise too_long(num_samples, f"about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")


def too_long(num_samples: int, needs: str) -> UserError:
    """The error for audio that does not fit; `needs` completes "needs"."""
    minutes = num_samples / SAMPLE_RATE / 60
    return UserError(
        f"audio of {minutes:.1f} minutes needs {needs}: a model with full context hears all of it at once; cut it, or "
        "take a streaming export"
    )


def free_bytes() -> int:
    """The least of what the machine, the control group and the limits of this process leave."""
    return min([_UNLIMITED, *_machine(), *_group(), *_process()])


def _machine() -> Iterator[int]:
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        yield from (int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


def _group() -> Iterator[int]:
    """Of control groups, version 2 and 1, as a container sees them."""
    for root, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            yield _read_number(os.path.join(root, most)) - _read_number(os.path.join(root, used))


def _read_number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def _process() -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        if limit != resource.RLIM_INFINITY:
            yield limit - int(file.read().split()[0]) * resource.getpagesize()
