"""Prepares input for trainings on other machines: `python tools/input_server.py --port 5050`, until it is stopped.

Then `--param 'loop.Training.input_servers=("this-machine:5050",)'`. The records have the same paths on both machines.
"""

import argparse


def main():
    """Starts the server and waits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5050, help="0 for a free one, which is printed")
    port = parser.parse_args().port
    from tf_rnnt_kd.data.input_servers import serve_input  # TensorFlow, which takes seconds and talks

    dispatcher, worker = serve_input(port)
    print(f"input server on port {dispatcher.target.rsplit(':', 1)[1]}", flush=True)
    worker.join()


if __name__ == "__main__":
    main()
