"""Sends damaged input through every door of the project, and prints what came out.

    python tools/fuzz.py                            the fixed part, which CI runs
    python tools/fuzz.py --door audio --factor 10   ten times as many cases of one door
    python tools/fuzz.py --door audio --case 17     one case in this process, with its traceback

A line of the table has for each door the cases that ended in a clear line, in the right outcome, in that of another
input (signed by hand, and so another valid thing: `accepted`; or of a format without redundancy: `excused`), and the
faults: another outcome in silence, a traceback, a crash, a hang. Exit code 1 where there are any.
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Runs what the options say."""
    options = _parse()
    from tests.fuzz import doors, running  # TensorFlow, which takes seconds

    chosen = [make for make in doors.DOORS if options.door in (None, make.name)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.folder or temporary)
        if options.case is not None:
            return _run_one(chosen[0](folder), options)
        results = []
        for make in chosen:
            number, before = round(options.factor * make.cases), _seconds_of_children()
            results += running.run_door(make, folder / make.name, cases=number, seed=options.seed)
            used = _seconds_of_children() - before
            print(f"{make.name}: {number} cases, {used:.1f} s of CPU", file=sys.stderr, flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps([result._asdict() for result in results]))
    print(running.format_table(results))
    print(running.list_faults(results, options.list))
    return int(any(result.verdict in running.FAULTS for result in results))


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--door", help="one of them; all by default")
    parser.add_argument("--factor", type=float, default=1.0, help="times the cases of the fixed part")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--case", type=int, help="one case of a door, in this process")
    parser.add_argument("--folder", help="for files; a temporary one by default")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--list", type=int, default=1, help="cases that are listed of each kind of fault")
    return parser.parse_args()


def _run_one(door, options) -> int:
    import traceback

    from tests.fuzz import core

    reference = core.prepare(door)
    case = core.make_case(door, options.seed, options.case)
    print(f"{case.what}: {case.given}")
    verdict = core.judge(door, reference, case, on_error=traceback.print_exc)
    print(f"{verdict.verdict}: {verdict.detail}")
    return int(verdict.verdict in core.FAULTS)


if __name__ == "__main__":
    sys.exit(main())
