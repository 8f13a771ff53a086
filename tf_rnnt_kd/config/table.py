"""Bindings whose names are known: what they give a class or function in a scope, and what that makes of it."""

import contextlib
import inspect
import pprint
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from tf_rnnt_kd.config.sources import Binding, Macro, Reference
from tf_rnnt_kd.errors import UserError

Scopes = tuple[str, ...]


class Table:
    """All bindings of a configuration. Nothing changes it: what it gave yesterday it gives tomorrow.

    Args:
      bindings: whose names are known, in the order in which they hold.
    """

    def __init__(self, bindings: Iterable[Binding]):
        self.bindings: dict[tuple[Scopes, Callable], dict[str, Binding]] = {}
        self.macros: dict[str, Binding] = {}
        self.replaced: list[Binding] = []  # by a later one of the same name
        # What is known to be a mistake, with the line that says so: bindings, and calls without all their arguments.
        self.wrong: dict[Binding, str] = {}
        self.missing: dict[tuple[Callable, Scopes], str] = {}
        self._building: list[tuple[Callable, Scopes]] = []
        for binding in bindings:
            known, name = self.macros, binding.name
            if binding.parameter:
                known, name = self.bindings.setdefault((binding.scopes, binding.target), {}), binding.parameter
            if name in known:
                self.replaced.append(known[name])
            known[name] = binding

    def bound(self, target: Callable, scopes: Scopes) -> dict[str, Binding]:
        """What `target` gets in a scope: of all outer scopes, an inner one wins."""
        found = {}
        for depth in range(len(scopes) + 1):
            found.update(self.bindings.get((scopes[:depth], target), {}))
        return found

    def macro_value(self, macro: Macro) -> Binding | None:
        """What a macro stands for, None if nothing defines it."""
        return self.macros.get(macro.name)

    def build(self, target: Callable, scopes: Scopes, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Calls `target` with what is bound to it; the caller's own arguments win.

        Raises:
          UserError: with all mistakes of all arguments, else with that of the call.
        """
        with self._once(target, scopes):
            if (target, scopes) in self.missing:
                raise UserError(self.missing[target, scopes])
            keywords = self.arguments(target, scopes, len(args), kwargs or {})
            with _in_a_line(target, scopes):
                return target(*args, **keywords)

    def arguments(
        self, target: Callable, scopes: Scopes, num_given: int = 0, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The keywords that `build` calls `target` with, where its caller gives so many positional ones."""
        bound, values, mistakes = self.bound(target, scopes), dict(given or {}), []
        first = positional(target)[:num_given]
        for name, binding in bound.items():
            if name in values or name in first:
                continue
            try:
                if binding in self.wrong:
                    raise UserError(self.wrong[binding])
                values[name] = self._value(binding.value, scopes)
            except UserError as error:
                mistakes += error.mistakes
        if mistakes:
            raise UserError.of("the configuration", list(dict.fromkeys(mistakes)))
        return values

    def _value(self, value, scopes: Scopes):
        if isinstance(value, Macro):
            if value.name not in self.macros:
                raise UserError(needed_macro(value.name))
            with self._once(value.name, ()):
                return self._value(self.macros[value.name].value, tuple(value.name.split("/")))
        if isinstance(value, Reference):
            if value.builds:
                return self.build(value.target, value.scopes or scopes)
            return Factory(self, value.target, value.scopes)
        if isinstance(value, dict):
            return {self._value(key, scopes): self._value(each, scopes) for key, each in value.items()}
        return type(value)(self._value(each, scopes) for each in value) if isinstance(value, list | tuple) else value

    @contextlib.contextmanager
    def _once(self, target: Callable | str, scopes: Scopes) -> Iterator[None]:
        if (target, scopes) in self._building:
            name = f"%{target}" if isinstance(target, str) else f"@{name_in(target, scopes)}()"
            raise UserError(f"{name} is made of itself: one of its bindings leads back to it")
        self._building.append((target, scopes))
        try:
            yield
        finally:
            self._building.pop()

    def text(self, read: Collection[Binding], modules: Iterable[str]) -> str:
        """The bindings of the table that are `read` as one gin file, which imports `modules` besides those it names."""
        values = [binding.value for binding in read]
        targets = {reference.target for value in values for reference in references(value)}
        targets |= {binding.target for binding in read if binding.parameter}
        alias = _aliases({*modules, *(target.__module__ for target in targets)})
        lines = ["from __gin__ import dynamic_registration", ""]
        lines += [_import_line(module, name) for module, name in sorted(alias.items())]
        lines += ["", *sorted(_line(each.name, each.value, alias) for each in read if not each.parameter)]
        blocks: dict[tuple, list[str]] = {}
        for binding in (each for each in read if each.parameter):
            module, name = binding.target.__module__, binding.target.__qualname__
            full = "/".join([*binding.scopes, f"{alias[module]}.{name}.{binding.parameter}"])
            blocks.setdefault((module, name, binding.scopes), []).append(_line(full, binding.value, alias))
        for key in sorted(blocks):
            lines += ["", *sorted(blocks[key])]
        return "\n".join(lines) + "\n"


class Factory:
    """A class or function with what a configuration binds to it, to be called later, any number of times.

    Attributes:
      func: the class or function, as in `functools.partial`.
      keywords: what is bound to it.
    """

    def __init__(self, table: Table, target: Callable, scopes: Scopes):
        self._table, self.func, self._scopes = table, target, scopes

    def __call__(self, *args, **kwargs):
        return self._table.build(self.func, self._scopes, args, kwargs)

    @property
    def keywords(self) -> dict[str, Any]:
        return self._table.arguments(self.func, self._scopes)

    def __repr__(self):
        return f"@{name_in(self.func, self._scopes)}"


def needed_macro(name: str) -> str:
    """What is said of a macro that is read and not defined."""
    return f"the macro {name} is required: give it with --param '{name}=…'"


def references(value: Any) -> Iterator[Reference]:
    """All references in a value, macros not followed."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict):
        yield from references([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from references(each)


def name_in(target: Callable, scopes: Scopes) -> str:
    """`scope/module.Name`."""
    return "/".join([*scopes, f"{target.__module__.rpartition('.')[2]}.{target.__qualname__}"])


def positional(target: Callable) -> list[str]:
    """Names of the arguments that a caller may give by position."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, parameter in parameters(target).items() if parameter.kind in kinds]


def parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a class or function by name."""
    function = target.__init__ if isinstance(target, type) else target
    found = list(inspect.signature(function).parameters.items())
    return dict(found[1:] if isinstance(target, type) else found)


@contextlib.contextmanager
def _in_a_line(target: Callable, scopes: Scopes) -> Iterator[None]:
    """What a configured call raises becomes a line that names it."""
    where = f"in @{name_in(target, scopes)}()"
    try:
        yield
    except UserError as error:
        if len(error.mistakes) > 1 or not scopes:
            raise
        raise UserError(f"{where}: {error.message}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # layers of Keras, and code of others, raise whatever comes
        lines = str(error).split("\n") or [""]
        raise UserError(f"{where}: {lines[0].strip() or type(error).__name__}") from error


def _aliases(modules: set[str]) -> dict[str, str]:
    """A short name for each module: the last part of its own, more of it where two are alike."""
    names, last = {}, [module.rpartition(".")[2] for module in modules]
    for module in modules:
        parts = module.split(".")
        alike = last.count(parts[-1]) > 1
        names[module] = "_".join(parts[-2:]) if alike and len(parts) > 1 else parts[-1]
    return names


def _import_line(module: str, name: str) -> str:
    package, _, last = module.rpartition(".")
    line = f"from {package} import {last}" if package else f"import {module}"
    return line if name == last else f"{line} as {name}"


class _Written:
    """A value in the names of the text."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self):
        return self.text


def _line(name: str, value, alias: Mapping[str, str]) -> str:
    written = _write(value, alias)
    line = f"{name} = {written!r}"
    if len(line) <= 120:
        return line
    block = pprint.pformat(written, width=116).replace("\n", "\n    ")
    return f"{name} = \\\n    {block}"


def _write(value, alias: Mapping[str, str]):
    if isinstance(value, Reference):
        name = "/".join([*value.scopes, f"{alias[value.target.__module__]}.{value.target.__qualname__}"])
        return _Written(f"@{name}{'()' if value.builds else ''}")
    if isinstance(value, dict):
        return {_write(key, alias): _write(each, alias) for key, each in value.items()}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return _Written("-1e999" if value < 0 else "1e999")
    return type(value)(_write(each, alias) for each in value) if isinstance(value, list | tuple) else value
