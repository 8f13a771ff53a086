"""What one training step will take, before anything is tried; and what the process has taken."""

import contextlib
import resource
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.data.batching import Buckets
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.losses.joint_tiles import kept_floats, tile_nodes
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.training.objective import Objective

# Fitted to the peaks of eighteen measured steps on a CPU (tools/bench_memory.py, BUILD_NOTES.md); in float32 numbers,
# but for the first two.
_RUNTIME_BYTES = 100e6  # kernels, threads and the allocator's reserve
_BLOCK_BYTES = 33e6  # the graph of a Conformer block and its gradient, while TensorFlow optimizes it
_PER_WEIGHT = 4.9  # weight, two moments, gradient and what clipping makes of it
_PER_FRAME_WIDTH = 38.0  # what a Conformer block keeps for its gradient, in widths a frame
_PER_FRAME_SCORE = 1.3  # attention weights
_PER_FRAME_INPUT = 1.6  # features and subsampling, in (320 + width) a frame
_PER_JOINT = 2.7  # tile, heads and node tensors as counted, and their temporaries
_PER_KEPT = 0.84  # logits kept between the passes, as far as they add to the peak
_PER_KERNEL = 5.6  # sums and packed copies of the joint network's kernel


class StepShape(NamedTuple):
    """B, T and U of a batch on one replica."""

    batch: int
    frames: int
    labels: int


def step_bytes(model: Transducer, objective: Objective, shape: StepShape) -> float:
    """The peak of a training step on one replica: weights, optimizer, activations, lattice and tile.

    `r + s N + 4 (a P + B T (b N W + c N H T) + d B T (320 + W) + e (tile + B T (14 (U+1) + 4 (D + V))) + k K + f D V)`
    for P weights, K kept logits and N blocks of width W with H heads. Limited context stands for the last T of the
    scores, one block for all that are recomputed; a second pass adds its blocks, and another lattice. On accelerators
    the first two terms are the host's, and XLA saves some.

    Args:
      model: the student, built.
      objective: whether there is a teacher; a band.
      shape: of the batch.

    Returns:
      Bytes.
    """
    encoder, vocabulary, joint = model.encoder, model.vocabulary_size, model.joint_width
    size = tf.as_dtype(encoder.compute_dtype).size / 4  # activations may be of half the width
    rows = shape.batch * shape.frames
    seen = _frames_seen(model, shape.frames)
    num_blocks, inputs = len(seen), 0
    if encoder.rematerialise:  # the inputs of all blocks, the insides of one
        seen, inputs = [max(seen)], num_blocks
    lattices = sum(_lattice_numbers(each, shape, joint, vocabulary) for each in objective.passes)
    numbers = (
        _PER_WEIGHT * model.count_params()
        + size * rows * (_PER_FRAME_WIDTH * len(seen) + inputs) * encoder.width
        + size * rows * _PER_FRAME_SCORE * encoder.num_heads * sum(seen)
        + _PER_FRAME_INPUT * rows * (320 + encoder.width)
        + lattices
        + _PER_KERNEL * joint * vocabulary
    )
    return _RUNTIME_BYTES + _BLOCK_BYTES * num_blocks + 4 * numbers


def _frames_seen(model: Transducer, frames: int) -> list[int]:
    """For each block, how many frames its attention sees from one of T."""
    encoder = model.encoder
    limited = min(frames, encoder.chunk + 5 * encoder.left_context // 4) if encoder.causal else frames
    return [limited] * encoder.num_blocks + [frames] * model.second_pass_blocks


def _lattice_numbers(objective: Objective, shape: StepShape, joint: int, vocabulary: int) -> float:
    """`e (tile + 14 B T (U+1) + 4 B T (D + V)) + k`."""
    batch, frames, labels = shape
    networks = 2 if objective.needs_teacher else 1
    if objective.band:
        nodes, kept = batch * frames * min(objective.band.columns, labels + 1), 0
    else:
        nodes = tile_nodes(batch, frames, labels, joint, vocabulary)
        kept = kept_floats(batch, frames, labels, joint, vocabulary)
    tile = nodes * (3 * joint + (2 + 3 * networks) * vocabulary)
    return _PER_JOINT * (tile + batch * frames * (14 * (labels + 1) + 4 * (joint + vocabulary))) + _PER_KEPT * kept


def check_memory(
    model: Transducer,
    objective: Objective,
    buckets: Buckets,
    num_labels: list[int],
    available: float | None,
    parts: int = 1,
) -> None:
    """Refuses batches that cannot fit, before the first of them is tried.

    Args:
      model: the student, built.
      objective: what it minimises.
      buckets: the shapes of batches.
      num_labels: U of each bucket.
      available: bytes, or None where that is not known.
      parts: into which a batch is divided, done one after the other or on other machines.

    Raises:
      UserError: with the batch that would fit.
    """
    if available is None:
        return
    sizes = [buckets.batch_size(k) // parts for k in range(len(num_labels))]
    shapes = [StepShape(sizes[k], buckets.num_frames(k), int(num)) for k, num in enumerate(num_labels)]
    needed, bucket = max((step_bytes(model, objective, shape), k) for k, shape in enumerate(shapes))
    if needed <= available:
        return
    fitting = [_largest_batch(model, objective, shape, available) for shape in shapes]
    batch_seconds = min(batch * parts * seconds for batch, seconds in zip(fitting, buckets.seconds, strict=True))
    shape, seconds = shapes[bucket], buckets.seconds[bucket]
    cure = (
        f"{fitting[bucket]} x {seconds:g} s would fit: set Buckets.batch_seconds = {batch_seconds:g}"
        if all(fitting)
        else "one utterance of some bucket is too much already: take a smaller model or shorter buckets"
    )
    raise UserError(
        f"a step of {shape.batch} x {seconds:g} s, {shape.labels} labels, needs about {needed / 1e9:.1f} GB, and "
        f"{available / 1e9:.1f} GB are free: {cure}"
    )


def _largest_batch(model: Transducer, objective: Objective, shape: StepShape, available: float) -> int:
    smaller = (shape._replace(batch=batch) for batch in range(shape.batch, 0, -1))
    return next((s.batch for s in smaller if step_bytes(model, objective, s) <= available), 0)


def available_bytes() -> float | None:
    """Memory that a new process on this machine may take; None with an accelerator, whose memory counts instead."""
    if tf.config.list_physical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(line.split(":") for line in file)
    except OSError:
        return None
    return float(sizes["MemAvailable"].split()[0]) * 1024


def peak_gigabytes() -> dict[str, float]:
    """The most memory that this process has taken so far: of the host, and of each accelerator that says so."""
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}  # Linux counts in KiB
    for kind in ("GPU", "TPU"):
        for i in range(len(tf.config.list_physical_devices(kind))):
            with contextlib.suppress(ValueError, tf.errors.OpError):
                peaks[f"{kind.lower()}_{i}"] = tf.config.experimental.get_memory_info(f"{kind}:{i}")["peak"] / 1e9
    return peaks
