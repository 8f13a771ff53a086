"""Prepares input for trainings on other machines: `python tools/input_server.py --port 5050`, until it is stopped.

It listens on this machine's loopback address only. Bring it to a training elsewhere through a tunnel, which asks who
comes: there, `ssh -N -L 5050:localhost:5050 -L 5051:localhost:5051 this-machine`, and then
`--param 'loop.Training.input_servers=("localhost:5050",)'`. The records have the same paths on both machines.
"""

import argparse
import sys

_OPEN = (
    "warning: {address} can be reached from other machines, and tf.data's service asks nobody who they are: whoever "
    "connects reads and writes files as this user. Use it inside a network that you trust, or leave out --listen and "
    "come through a tunnel (ssh -L)"
)


def main():
    """Starts the server and waits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--port", type=int, default=5050, help="and the next one for its worker; 0 for free ones; the first is printed"
    )
    parser.add_argument(
        "--listen", metavar="ADDRESS", default="127.0.0.1", help="interface to listen on; 0.0.0.0 for all of them"
    )
    arguments = parser.parse_args()
    # TensorFlow, which takes seconds and talks
    from tf_rnnt_kd.data.binding import is_loopback
    from tf_rnnt_kd.data.input_servers import serve_input
    from tf_rnnt_kd.errors import UserError

    try:
        dispatcher, worker = serve_input(arguments.port, arguments.listen)
        if not is_loopback(arguments.listen):
            print(_OPEN.format(address=arguments.listen), file=sys.stderr, flush=True)
    except UserError as error:
        parser.error(error.message)
    print(f"input server on {arguments.listen}, port {dispatcher.target.rsplit(':', 1)[1]}", flush=True)
    worker.join()


if __name__ == "__main__":
    main()
