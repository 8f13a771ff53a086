"""Gin files to plans. The only module that knows gin.

A run file binds `plan.Plan`. Macros in capitals are its public knobs: `--param 'STEPS=100'` overrides one. Gin accepts
a misspelt macro in silence, so macros that are defined but never used are refused here.
"""

import contextlib
import difflib
import importlib.util  # noqa: F401  gin.resource_reader uses it without importing it
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from tokenize import TokenError

import gin

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.plan import Plan

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def load_plan(path: str, params: Sequence[str] = ()) -> tuple[Plan, str]:
    """Reads a gin file and builds the plan it binds.

    Args:
      path: of the gin file; a relative one may also be relative to the project, so that jobs start from any folder.
      params: bindings that come last, such as `STEPS=100`.

    Returns:
      The plan and the resolved configuration as text.

    Raises:
      UserError: for a missing file, a misspelt macro or parameter, or a value the plan refuses.
    """
    gin.clear_config()
    for param in params:
        if not re.match(r"^[\w./]+\s*=\s*\S", param):
            raise UserError(f"--param {param!r} is not of the form NAME=value")
    found = _find(path)
    with _one_line(path), _found_from_the_project():
        gin.parse_config_file(found, print_includes_and_imports=False)
    for param in params:
        with _one_line(f"--param {param!r} (a text needs quotes of its own)"):
            gin.parse_config(param)
    _check_macros(params)
    with _one_line(path):
        gin.finalize()
        return gin.get_configurable(Plan)(), gin.config_str()


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turns what gin and the bound classes raise into one line that begins with `where`."""
    try:
        yield
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        AttributeError,
        SyntaxError,
        OSError,
        RuntimeError,
        ImportError,
        TokenError,
    ) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        if reason.startswith("malformed node"):
            reason = "the value is neither a number, a text in quotes, a tuple nor a @reference"
        raise UserError(f"{where}: {reason}{_near_name(reason)}") from error


def _near_name(reason: str) -> str:
    """` did you mean …?` where gin misses a configurable or a parameter and there is one of nearly that name."""
    parameter = re.search(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", reason)
    configurable = re.search(r"No configurable matching '(.+)'", reason)
    if parameter:
        found = gin.config._REGISTRY.get_all_matches(parameter[1])
        name, known = parameter[2], {name for each in found for name in inspect.signature(each.wrapped).parameters}
    elif configurable:
        name = configurable[1]
        known = {".".join(selector.split(".")[-2:]) for _, selector in gin.config._CONFIG}
    else:
        return ""
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f" did you mean {near[0]}?" if near else ""


def _find(path: str) -> str:
    for candidate in (path, os.path.join(_ROOT, path)):
        if os.path.isfile(candidate):
            return os.path.abspath(candidate)
    folder = os.path.join(_ROOT, "configs")
    known = sorted(f"configs/{name}" for name in os.listdir(folder) if name.endswith(".gin"))
    near = difflib.get_close_matches(path, known, 1, 0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"no config file {path!r}: {hint}")


def _check_macros(params):
    """Each macro that a file or a parameter defines must be read by some binding."""
    defined = {scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"}
    given = {param.split("=")[0].strip() for param in params}
    values = [value for bindings in gin.config._CONFIG.values() for value in bindings.values()]
    used = {macro.scoped_selector.rsplit("/", 1)[0] for value in values for macro in _macros_in(value)}
    for name in sorted(defined - used):
        near = difflib.get_close_matches(name, sorted(used - {name}), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(used)) or 'none'}"
        where = "--param" if name in given else "the config"
        raise UserError(f"{where} sets {name}, which nothing reads: {hint}")
    for name in sorted(used - defined):
        raise UserError(f"the macro {name} is required: give it with --param '{name}=…'")


def _macros_in(value):
    return [
        found
        for found in gin.config._iterate_flattened_values(value)
        if isinstance(found, gin.config.ConfigurableReference) and found.configurable.selector == "gin.macro"
    ]


@contextlib.contextmanager
def _found_from_the_project() -> Iterator[None]:
    """Includes are relative to the project, from whichever folder a job is started.

    Gin's own search tries the working folder first, takes folders on Python's path for packages, and logs an error for
    every place that lacks the file.
    """
    readers = gin.config._FILE_READERS
    gin.config._FILE_READERS = [(lambda path: open(os.path.join(_ROOT, path), encoding="utf-8"), _exists)]
    try:
        yield
    finally:
        gin.config._FILE_READERS = readers


def _exists(path: str) -> bool:
    return os.path.isfile(os.path.join(_ROOT, path))
