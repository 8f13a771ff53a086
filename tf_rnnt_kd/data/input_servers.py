"""Input that is prepared on other machines: each runs tf.data's service, a dispatcher with one worker.

One worker a dispatcher, and as many addresses as there are machines: so it is known which of them makes which step, and
the order of batches is that of the schedule. A dispatcher with several workers would give them out as they come.
"""

import socket
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.binding import LOOPBACK, listen_only_on
from tf_rnnt_kd.errors import UserError

EVERYWHERE = ("0.0.0.0", "::")  # addresses that stand for all interfaces
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


def serve_input(port: int, address: str = LOOPBACK) -> tuple:
    """Starts an input server in this process; it ends when what is returned is gone.

    tf.data's service knows no passwords and would listen on all addresses: whoever reaches it reads and writes files as
    its user. See `binding` for how it is kept to one; that holds for this thread until the process ends.

    Args:
      port: to listen on, and the next one for the worker; 0 for free ones.
      address: of the interface to listen on, in digits; "0.0.0.0" for all.

    Returns:
      Dispatcher and worker; `dispatcher.target` ends with the port.

    Raises:
      UserError: `address` is none, or this system cannot keep the server to it.
    """
    service = tf.data.experimental.service
    everywhere = address in EVERYWHERE
    if not everywhere:
        listen_only_on(address)
    near = LOOPBACK if everywhere else address
    # What clients are told: through a tunnel from their own machine, too, the loopback address leads here.
    known_as = socket.gethostname() if everywhere else address
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
    port_found = dispatcher.target.rsplit(":", 1)[1]
    worker = service.WorkerConfig(
        dispatcher_address=f"{_in_url(near)}:{port_found}",
        worker_address=f"{_in_url(known_as)}:%port%",
        port=port + 1 if port else 0,
    )
    return dispatcher, service.WorkerServer(worker)


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


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
