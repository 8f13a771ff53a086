"""What names in gin files mean: modules are imported here, and only what may be configured is found in them."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection
from types import ModuleType

from tf_rnnt_kd.config.sources import PACKAGE, Source, Sources, is_within
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.options import is_checked, nearest


class Names:
    """The names that the imports of some sources give, to all of them.

    A name is looked up among the imports of its own source first, then among those of the others, then among all that
    is configured: `Objective.kl_weight` is enough for `--param`.

    Args:
      sources: whose imports are carried out.
      trusted: modules outside of this package that may be imported.

    Raises:
      UserError: a module can't be imported.
    """

    def __init__(self, sources: Sources, trusted: Collection[str]):
        self._trusted = trusted
        self._tables, self._targets, mistakes = {}, {}, []
        for source in sources.all:
            self._tables[source] = {}
            for statement in source.imports:
                try:
                    self._tables[source][statement.bound_name()] = _import(statement)
                except UserError as error:
                    where = source.name if source.is_param else f"{source.name}, line {statement.location.line_num}"
                    mistakes.append(f"{where}: {error}")
        if mistakes:
            raise UserError.of(sources.all[0].name, mistakes)

    def resolve(self, selector: str, source: Source) -> Callable:
        """The class or function of that name.

        Raises:
          UserError: there is none, or it may not be configured.
        """
        first, *rest = selector.split(".")
        modules = self._modules(first, source)
        if len(modules) > 1:
            raise UserError(f"{first!r} is another module in each of the files: import it beside {selector!r}")
        if not modules or not rest:
            return self._by_ending(selector, first, source)
        target = modules[0]
        for name in rest:
            if not hasattr(target, name):
                raise UserError(f"no configurable matching {selector!r}{_nearest_in(target, selector)}")
            target = getattr(target, name)
        self._check(selector, target)
        self._targets[f"{target.__module__}.{target.__qualname__}"] = target
        self._targets[selector] = target
        return target

    def _modules(self, name: str, source: Source) -> list[ModuleType]:
        tables = self._tables[source], *self._tables.values()
        found = [table[name] for table in tables if name in table]
        return found[:1] if name in self._tables[source] else list(dict.fromkeys(found))

    def _by_ending(self, selector: str, first: str, source: Source) -> Callable:
        ends = {target for name, target in self._targets.items() if f".{name}".endswith(f".{selector}")}
        if len(ends) == 1:
            return ends.pop()
        if ends:
            raise UserError(f"{selector!r} is the end of several names: write more of it")
        short = {".".join(name.split(".")[-2:]) for name in self._targets}
        known = {name for table in self._tables.values() for name in table}
        module = nearest(first, known) if "." in selector else ""
        raise UserError(f"no configurable matching {selector!r}{nearest(selector, short) or module}")

    def _check(self, selector: str, target) -> None:
        if is_checked(target):
            return
        module = getattr(target, "__module__", None) or ""
        own = is_within(module, [PACKAGE]) or not is_within(module, self._trusted)
        if own or not (inspect.isclass(target) or inspect.isfunction(target)):
            raise UserError(f"{selector!r} is not among what can be configured")


def _import(statement) -> ModuleType:
    try:
        module = importlib.import_module(statement.module)
    except Exception as error:  # whatever a module does when it is imported
        parent, _, name = statement.module.rpartition(".")
        missing = isinstance(error, ModuleNotFoundError) and error.name and is_within(statement.module, [error.name])
        if not missing:
            raise UserError(f"importing {statement.module} fails: {type(error).__name__}: {error}") from error
        raise UserError(f"there is no module {statement.module}{nearest(name, _modules_in(parent))}") from error
    bare = not statement.is_from and not statement.alias
    return importlib.import_module(statement.module.partition(".")[0]) if bare else module


def _nearest_in(owner, selector: str) -> str:
    prefix = selector.rpartition(".")[0]
    return nearest(selector, [f"{prefix}.{name}" for name, value in vars(owner).items() if is_checked(value)])


def _modules_in(package: str) -> list[str]:
    try:
        folders = importlib.import_module(package).__path__
    except (ImportError, AttributeError, ValueError):
        return []
    return [module.name for module in pkgutil.iter_modules(folders)]
