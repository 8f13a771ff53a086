"""Compares evaluated systems on the test sets they share: a table, and paired differences with 95 % intervals.

    python -m tf_rnnt_kd.compare runs/teacher runs/student
    python -m tf_rnnt_kd.compare hard=runs/hard-0,runs/hard-1 soft=runs/soft-0,runs/soft-1 --output report.json

An argument is a folder with `results.json`, or NAME=FOLDER,FOLDER,… for the seeds of one system.
"""

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command
from tf_rnnt_kd.evaluation.report import format_differences, format_table, read_systems, write_report

_OUTPUT = flags.DEFINE_string("output", None, "Also write the comparison as JSON to this file.")


def main(argv) -> None:
    """Reads, compares and prints."""
    if len(argv) < 3:
        raise UserError("compare needs two or more folders with results: name them after the command")
    systems = read_systems(argv[1:])
    print(format_table(systems), format_differences(systems), sep="\n\n")
    if _OUTPUT.value:
        write_report(_OUTPUT.value, systems)


if __name__ == "__main__":
    run_command(main)
