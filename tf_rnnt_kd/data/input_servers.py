"""Input that is prepared on other machines: each runs tf.data's service, a dispatcher with one worker.

One worker a dispatcher, and as many addresses as there are machines: so it is known which of them makes which step, and
the order of batches is that of the schedule. A dispatcher with several workers would give them out as they come.
"""

import socket
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.errors import UserError

_PATIENCE = 10.0  # seconds until a server has to answer


def read_through(
    servers: Sequence[str], read_steps: Callable[[np.ndarray], tf.data.Dataset], steps: np.ndarray, parts: int
) -> tf.data.Dataset:
    """What `read_steps(steps)` gives, in the same order; of N servers each does every N-th step.

    The servers read the records by the same paths.

    Args:
      servers: "host:port" of each.
      read_steps: from step numbers to a dataset of native operations.
      steps: [N] int64.
      parts: elements of a step.

    Raises:
      UserError: a server that does not answer.
    """
    for server in servers:
        _check(server)
    remote = [
        read_steps(steps[i :: len(servers)]).apply(
            tf.data.experimental.service.distribute(
                processing_mode=tf.data.experimental.service.ShardingPolicy.OFF, service=f"grpc://{server}"
            )
        )
        for i, server in enumerate(servers)
    ]
    turns = tf.data.Dataset.range(len(servers)).flat_map(lambda i: tf.data.Dataset.from_tensors(i).repeat(parts))
    return tf.data.Dataset.choose_from_datasets(remote, turns.repeat())


def serve_input(port: int) -> tuple:
    """Starts an input server in this process; it ends when what is returned is gone.

    Args:
      port: to listen on; 0 for a free one.

    Returns:
      Dispatcher and worker; `dispatcher.target` ends with the port.
    """
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
    address = dispatcher.target.split("://")[1]
    return dispatcher, service.WorkerServer(service.WorkerConfig(dispatcher_address=address))


def _check(server: str) -> None:
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"input server {server!r} is no address: Training.input_servers holds 'host:port'")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except OSError as error:
        raise UserError(
            f"input server {server} does not answer ({error}): start tools/input_server.py there, or leave it out"
        ) from error
