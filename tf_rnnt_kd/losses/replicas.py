"""What a loss decides over the whole batch, though each replica has only its own rows."""

import tensorflow as tf


def sum_over_replicas(values: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas that share a batch, with gradient; of a single one, or outside of any, `values`.

    Not inside a `tf.function` of a replica's own: there replicas of one process cannot meet.

    Args:
      values: float32 of any shape, the sums over this replica's rows.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
