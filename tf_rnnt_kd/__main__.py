"""`python -m tf_rnnt_kd`: lists the commands."""

import ast
import pathlib


def list_commands() -> str:
    """A line for each module that can be run, which says what it does."""
    lines = ["Commands (each with --help):", ""]
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "\n    run_command(main)" in source:
            lines.append(f"  {ast.get_docstring(ast.parse(source)).splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(list_commands())
