"""Gin files to plans. The only module that knows gin.

A run file binds `plan.Plan`. Macros in capitals are its public knobs: `--param 'STEPS=100'` overrides one. Gin accepts
a misspelt macro in silence, so macros that are defined but never used are refused here.
"""

import contextlib
import difflib
import importlib.util  # noqa: F401  gin.resource_reader uses it without importing it
import io
import logging
import os
import re
from collections.abc import Sequence

import gin

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.plan import Plan

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MACRO = re.compile(r"^\s*([A-Za-z_]\w*)\s*=(?!=)", re.MULTILINE)


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
    gin.add_config_file_search_path(_ROOT)
    for param in params:
        if not re.match(r"^[\w./]+\s*=", param):
            raise UserError(f"--param {param!r} is not of the form NAME=value")
    try:
        with _quiet_search():
            gin.parse_config_files_and_bindings([_find(path)], list(params), print_includes_and_imports=False)
        _check_macros(params)
        return gin.get_configurable(Plan)(), gin.config_str()
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, SyntaxError, OSError, RuntimeError, ImportError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from error


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
    defined = {
        name for (scope, selector), _ in gin.config._CONFIG.items() if selector == "gin.macro" for name in [scope]
    }
    given = {param.split("=")[0].strip() for param in params}
    used = set()
    for (_, selector), bindings in gin.config._CONFIG.items():
        for value in bindings.values():
            used.update(reference.scoped_selector.rsplit("/", 1)[0] for reference in _macros_in(value))
        del selector
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
def _quiet_search():
    """Gin logs an error for every search path that lacks a file, also when a later one has it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
