"""`python -m tf_rnnt_kd.compare DIR DIR …`: evaluated systems side by side, and paired differences with 95 % intervals.

Each argument is a folder with `results.json`, or NAME=DIR,DIR,… for the runs of one system that differ in their seed.
What exists is a folder, also where its name holds `=` or `,`; else NAME ends at the first `=`.
"""

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_OUTPUT = flags.DEFINE_string("output", None, "Also write the comparison as JSON to this file.")


def main(argv):
    """Reads, compares and prints."""
    from tf_rnnt_kd.evaluation.report import format_differences, format_table, write_report
    from tf_rnnt_kd.evaluation.systems import read_systems

    if len(argv) < 3:
        raise UserError("compare needs two or more folders with results: name them after the command")
    systems = read_systems(argv[1:])
    print(format_table(systems), format_differences(systems), sep="\n\n")
    if _OUTPUT.value:
        write_report(_OUTPUT.value, systems)


if __name__ == "__main__":
    run_command(main)
