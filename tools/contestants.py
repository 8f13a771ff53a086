"""What the benchmarks share: contestants, each measured in a process of its own, peers in environments of theirs."""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def usage() -> tuple[float, float, float]:
    """Wall clock and processor time in seconds, peak memory in MiB."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), own.ru_utime + own.ru_stime, own.ru_maxrss / 1024


def read_arguments(description: str, settings: dict, peers: Sequence[str]) -> argparse.Namespace:
    """The command line of a benchmark; `worker` names the contestant that this process is to measure, if any.

    Args:
      description: of the benchmark.
      settings: what all contestants are told, with defaults.
      peers: libraries that run in environments of their own.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in settings.items():
        parser.add_argument(f"--{key}", type=type(value), default=value, help="default: %(default)s")
    for peer in peers:
        parser.add_argument(f"--{peer}", metavar="PYTHON", help="its environment's")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="default: all that are available")
    parser.add_argument("--output", help="a JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(script: str, name: str, python: str | None, args: argparse.Namespace, settings: dict) -> dict:
    """What `script --worker name` prints in its last line, or why it failed, as `error`."""
    print("measuring", name, file=sys.stderr, flush=True)
    environment = {"PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= dict.fromkeys(["OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"], str(args.threads))
    command = [python or sys.executable, script, "--worker", name]
    command += [f"--{key}={getattr(args, key)}" for key in settings]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        return {"name": name, "error": (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]}
    return {"name": name} | json.loads(done.stdout.splitlines()[-1])


def conclude(
    rows: Sequence[dict], args: argparse.Namespace, settings: dict, print_table: Callable[[list[dict]], None]
) -> bool:
    """Prints what was measured and what failed, writes --output, and returns whether something failed."""
    measured = [row for row in rows if "error" not in row]
    print_table(measured)
    print(*(f"{row['name']} failed: {row['error']}" for row in rows if "error" in row), sep="\n")
    if args.output:
        result = {"settings": {key: getattr(args, key) for key in settings}, "rows": rows}
        pathlib.Path(args.output).write_text(json.dumps(result))
    return len(measured) < len(rows)
