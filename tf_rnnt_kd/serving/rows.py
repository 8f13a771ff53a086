"""What may go into an export and come out of it: whether inputs fit together, and which rows of a batch went wrong.

A call whose inputs do not fit together fails as a whole, with `InvalidArgumentError`: nobody could tell which row is
whose. Whatever is wrong with one row is an `error` of that row, and the others do not notice.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import tensorflow as tf

from tf_rnnt_kd.decoding.hypotheses import Hypotheses, NBest
from tf_rnnt_kd.masks import zero_padding

LOUDEST = 8.0  # of samples: full scale is 1, filters reach a little beyond, and integers taken for floats far beyond
NOT_FINITE = "samples are not finite"
TOO_LOUD = f"samples reach beyond {LOUDEST:.0f}, where 1 is full scale"
NOT_WITHIN = "num_samples is not within samples"
FOREIGN = "the state is none of this model's"
LOST = "features, scores or state are not finite"
_HUGE = 1e37  # sums beyond are as good as infinite; of the largest float32 itself a converter makes infinity
_ANY, _BATCH, _END = -1, -2, -3  # in the place of a size

Found = TypeVar("Found", Hypotheses, NBest)
Spec = Mapping[str, tf.TensorSpec]


def fit_together(inputs: Mapping[str, tf.Tensor], spec: Spec) -> dict[str, tf.Tensor]:
    """The inputs, once their shapes are found to be those of the signature, with one batch size for all.

    TensorFlow itself would take a batch of one for as many rows as there are elsewhere, and calls of a loaded signature
    do not compare shapes.

    Args:
      inputs: by name; the first says how many rows there are.
      spec: what is wanted of each, the batch first.
    """
    names = list(inputs)
    sizes = [size for name in names for size in (_BATCH, *spec[name].shape[1:])]
    wanted = tf.constant([_ANY if size is None else size for size in sizes] + [_END])
    # As many places as are wanted, whatever there is: behind the last size, and nowhere else, is the end.
    found = tf.concat([_shapes([inputs[name] for name in names]), [_END], tf.zeros([len(sizes)], tf.int32)], 0)
    found = found[: len(sizes) + 1]
    fits = tf.where(wanted == _BATCH, found == found[0], (wanted == found) | (wanted == _ANY))
    fits = tf.reduce_all(fits) & (found[0] > 0)
    message = (
        f"inputs do not fit together: each of {', '.join(names)} has one row for each of one or more sessions, and "
        "state is what initial_state or the step before gave. Their shapes, one after the other:"
    )
    # Not tf.debugging.Assert, whose branch lets other operations fail first, with messages of their own.
    check = tf.raw_ops.Assert(condition=fits, data=[message, found], summarize=200)
    with tf.control_dependencies([check]):
        return dict(zip(names, tf.identity_n([inputs[name] for name in names]), strict=True))


def _shapes(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """All sizes in a row, as they are when the graph runs."""
    shapes: list[tf.Tensor | None] = [None] * len(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        for i, shape in zip(places, tf.raw_ops.ShapeN(input=[tensors[i] for i in places]), strict=True):
            shapes[i] = shape
    return tf.concat(shapes, 0)


def find_errors(samples: tf.Tensor, num_samples: tf.Tensor) -> tf.Tensor:
    """What is wrong with each row of audio: [B, S], [B] -> [B] string, empty for nothing."""
    fits = (num_samples >= 0) & (num_samples <= tf.shape(samples)[1])
    heard = zero_padding(samples, num_samples)
    finite = tf.reduce_all(tf.math.is_finite(heard), axis=1)
    in_scale = tf.reduce_all(tf.abs(heard) <= LOUDEST, axis=1)
    return tf.where(fits, tf.where(finite, tf.where(in_scale, "", TOO_LOUD), NOT_FINITE), NOT_WITHIN)


def are_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether all of a row is finite, in every tensor [B, ...]: [B] bool. Integers always are.

    By sums, of which one value that is not finite makes another; tensors of one shape are added up first, as each
    operation takes longer than what it does with a state. In builtins of TFLite. The answer must not be negated:
    TensorFlow makes `x > y` of `not x <= y`, and both are false for NaN.
    """
    alike: dict[tuple, list[tf.Tensor]] = {}
    for tensor in tensors:
        if tensor.dtype.is_floating:
            alike.setdefault(tuple(tensor.shape[1:]), []).append(tf.cast(tensor, tf.float32))
    sums = [tf.reduce_sum(tf.add_n(group), axis=list(range(1, group[0].shape.rank))) for group in alike.values()]
    return tf.abs(tf.add_n(sums)) <= _HUGE


def silence(found: Found, rows: tf.Tensor) -> Found:
    """Hypotheses of nothing, as a search over no frame finds them, in the rows that are asked for: [B] bool."""

    def replace(values: tf.Tensor) -> tf.Tensor:
        where = rows[(..., *[None] * (values.shape.rank - 1))]
        return tf.where(where, tf.zeros([], values.dtype), values)

    quiet = type(found)(*map(replace, found))
    if isinstance(found, NBest):
        others = rows[:, None] & (tf.range(tf.shape(found.scores)[1]) > 0)
        quiet = quiet._replace(scores=tf.where(others, -float("inf"), quiet.scores))
    return quiet
