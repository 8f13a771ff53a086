"""Gin files to plans. The only package that knows gin, and it only takes its syntax.

A run file binds `plan.Plan`. Macros in capitals are its public knobs: `--param 'STEPS=100'` overrides one. All that is
wrong is told at once, before anything is built. A plan is made of values, and of factories over a table of bindings
that is its own: the plans of one process know nothing of each other.
"""

import os
from collections.abc import Callable, Collection, Sequence

from tf_rnnt_kd.config.mistakes import find_mistakes
from tf_rnnt_kd.config.names import Names
from tf_rnnt_kd.config.sources import Sources
from tf_rnnt_kd.config.table import Factory, Table, references
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.plan import Plan


def load_plan(path: str, params: Sequence[str] = (), *, trusted: Collection[str] | None = ()) -> tuple[Plan, str]:
    """Reads a gin file and builds the plan it binds.

    Args:
      path: of the gin file; a relative one may also be relative to the project, so that jobs start from any folder.
      params: bindings that come last, such as `STEPS=100`.
      trusted: modules outside of this package that the file may import, which is to run them; None for any.

    Returns:
      The plan and the resolved configuration as text.

    Raises:
      UserError: for a missing file, or with all mistakes in it, a line each; nothing is imported that is not trusted.
    """
    sources = Sources([path], params)
    if sources.mistakes:
        raise UserError.of(path, sources.mistakes)
    foreign = sources.foreign_modules()
    untrusted = [module for module in foreign if trusted is not None and module not in trusted]
    if untrusted:
        raise UserError(
            f"{path} imports {', '.join(untrusted)}, which runs code from outside of tf_rnnt_kd: read it, then give "
            "--trust_config once, and the run folder remembers"
        )
    table = _resolved(sources, foreign)
    (mistakes, read), plan = find_mistakes(table, Plan), None
    try:
        plan = table.build(Plan, ())
    except UserError as error:
        mistakes += error.mistakes
    if mistakes or plan is None:
        raise UserError.of(path, list(dict.fromkeys(mistakes)))
    return plan, table.text(read, foreign)


def load_factory(paths: Sequence[str], target: Callable, scope: str = "") -> Callable:
    """What parts of a configuration bind to a class or function in a scope, to be called.

    Args:
      paths: of gin files, as in `load_plan`; they import nothing from outside of this package.
      target: a class or function that they name.
      scope: such as "streaming".

    Raises:
      UserError: a file can't be read, or names what there is not.
    """
    sources = Sources(paths)
    if sources.mistakes:
        raise UserError.of(", ".join(paths), sources.mistakes)
    return Factory(_resolved(sources, ()), target, tuple(filter(None, scope.split("/"))))


def trusted_by(work_dir: str) -> list[str]:
    """The modules that the configuration of a run folder imports: whoever began the run has trusted them."""
    path = os.path.join(work_dir, "config.gin")
    return Sources([path]).foreign_modules() if os.path.isfile(path) else []


def _resolved(sources: Sources, trusted: Collection[str]) -> Table:
    names, mistakes = Names(sources, trusted), []
    # Names that stand for themselves first: of these others may be the end.
    for strict in (True, False):
        for binding in sources.bindings:
            for named in (*([binding] if binding.parameter else []), *references(binding.value)):
                if named.target is None:
                    try:
                        named.target = names.resolve(named.selector, binding.source)
                    except UserError as error:
                        mistakes += [] if strict else [f"{binding.where}: {error}"]
    if mistakes:
        raise UserError.of(sources.all[0].name, list(dict.fromkeys(mistakes)))
    return Table(sources.bindings)
