"""Run files and `--param`: loaded as plans."""

import pathlib
import re

from tests.fuzz.core import Case, Door, digest, one_of, remove
from tests.fuzz.damage import damage_bytes
from tests.fuzz.texts import damage_text
from tf_rnnt_kd.config import load_plan
from tf_rnnt_kd.options import CHECKED, options_of

_RUN = "configs/quickstart.gin"
_ROOT = pathlib.Path(__file__).parents[2]

# What no option can mean, and what some might.
_NEVER = ("{'a': 1}", "b'x'", "-1e999", "[[[[[]]]]]", "'\\x00'", "{'a': {'b': ()}}", "1j")
_PERHAPS = (
    "None", "True", "-1", "0", "1", "2**63", "9223372036854775808", "1e300", "1e-300", "'text'", "''", "()", "(1,)",
    "(0.5, 0.5)", "[]", "('a', 'b')", "@nothing", "@nothing()", "%NOTHING", "@loop.Training", "@loop.Training()",
    "(" * 500, "[" * 50_000, "'" + "x" * 100_000 + "'", "'unended", "1 2", "=", "\\", "#", "import os", "9" * 5_000,
    "0x1F", "1_000", "'\u2028'", "'\ud83d\ude00'", "\x00", "lambda: 1", "__import__('os')", "f''", "...", "-",
    "'../../elsewhere'", "'bfloat61'",
)  # fmt: skip


class Configs(Door):
    """The quick start's run file, damaged, or with a parameter more."""

    name, cases = "configs", 600

    def open(self):
        _, resolved = load_plan(_RUN)
        self._text = (_ROOT / _RUN).read_bytes()
        bound = re.findall(r"^([\w./]+) = ", resolved, re.MULTILINE)
        self._names = sorted({name for binding in bound for name in _parameters(binding)})
        return self.enter((_RUN, ()))

    def case(self, rng, number):
        if number % 3:
            return self._parameter(rng)
        remove(self.scratch)
        self.scratch.mkdir()
        path = self.scratch / "run.gin"
        what, data, *_ = (damage_text if number % 2 else damage_bytes)(rng, self._text)
        path.write_bytes(data)
        return Case(f"run.gin: {what}", (str(path), ()), forged=True)

    def _parameter(self, rng):
        never = not rng.integers(2)
        value = one_of(rng, _NEVER if never else _PERHAPS)
        name = one_of(rng, self._names)
        if not rng.integers(8):
            what, changed = damage_bytes(rng, name.encode())
            name, never = changed.decode("utf-8", "surrogateescape"), False
        return Case(f"--param {name}={value[:60]}", (_RUN, (f"{name}={value}",)), forged=not never)

    def enter(self, given):
        plan, text = load_plan(*given)
        return plan.name, digest(text)


def _parameters(bound: str) -> list[str]:
    """Everything that can be bound where this is, in the same scope: `soft/loop.Training.steps`."""
    *scope, name = bound.split("/")
    if "." not in name:
        return [bound]  # a macro
    short = name.rpartition(".")[0]
    target = next(target for target in CHECKED if f"{target.__module__}.{target.__qualname__}".endswith(f".{short}"))
    return ["/".join([*scope, f"{short}.{option}"]) for option in options_of(target)]
