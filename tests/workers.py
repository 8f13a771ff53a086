"""Processes on this machine that know of each other."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def free_ports(count):
    """Ports that nobody listens on: a moment ago, at least."""
    with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_port]
    for server in with_port:
        server.close()
    return ports


def worker_environments(count=2):
    """What tells each worker of the others."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    configs = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}} for i in range(count)]
    return [{**os.environ, "TF_CONFIG": json.dumps(config)} for config in configs]


@contextlib.contextmanager
def input_server():
    """The address of an input server in a process of its own."""
    with input_server_process() as (_, port):
        yield f"localhost:{port}"


@contextlib.contextmanager
def input_server_process(*options, **pipes):
    """Such a process, and its port."""
    command = [sys.executable, "tools/input_server.py", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **pipes) as process:
        try:
            yield process, int(process.stdout.readline().split()[-1])
        finally:
            process.kill()
