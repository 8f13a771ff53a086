"""What is wrong with a table of bindings, found without building anything: all of it, each in a line."""

import collections.abc
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from tf_rnnt_kd.config.sources import Binding, Macro, Reference
from tf_rnnt_kd.config.table import Scopes, Table, name_in, needed_macro, parameters, positional, references
from tf_rnnt_kd.options import is_checked, nearest, options_of, shown


def find_mistakes(table: Table, root: Callable) -> tuple[list[str], list[Binding]]:
    """What is wrong with a table from which `root` is to be built, and the bindings that will be read for it.

    Mistakes of single bindings are left in `table.wrong` too.
    """
    _look_at_names(table)
    _look_at_values(table)
    reading = _Reading(table)
    reading.visit(root, (), [])
    read = list(reading.read)
    reading.visit_replaced()
    unread = _unread(table, reading.calls)
    return [*_macros(table), *table.wrong.values(), *table.missing.values(), *reading.superfluous, *unread], read


def _bindings(table: Table) -> Iterator[Binding]:
    for bound in table.bindings.values():
        yield from bound.values()


# -- names --


def _look_at_names(table: Table) -> None:
    for binding in _bindings(table):
        known = options_of(binding.target) if is_checked(binding.target) else parameters(binding.target)
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters(binding.target).values())
        if binding.parameter not in known and (is_checked(binding.target) or not takes_all):
            what = f"{binding.selector} has no parameter named {binding.parameter!r}"
            table.wrong[binding] = f"{binding.where}: {what}{nearest(binding.parameter, known)}"


def _macros(table: Table) -> Iterator[str]:
    """Each macro that is defined must be read by some binding, and each that is read must be defined."""
    used, waiting = set(), [macro for binding in _bindings(table) for macro in _macros_in(binding.value)]
    while waiting:
        name = waiting.pop().name
        if name not in used and name in table.macros:
            waiting += _macros_in(table.macros[name].value)
        used.add(name)
    for name in sorted(used - {*table.macros}):
        yield needed_macro(name)
    for name in sorted({*table.macros} - used):
        hint = nearest(name, used - {name}) or f": there are {', '.join(sorted(used)) or 'none'}"
        source = table.macros[name].source
        yield f"{'--param' if source.is_param else table.macros[name].where} sets {name}, which nothing reads{hint}"


def _macros_in(value) -> Iterator[Macro]:
    if isinstance(value, Macro):
        yield value
    elif isinstance(value, dict):
        yield from _macros_in([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _macros_in(each)


# -- values --


class _Promise:
    """Stands for what a reference will give: an object of a class, or something to call."""

    def __init__(self, reference: Reference, wanted: type | None):
        self._reference, self._class = reference, wanted

    @property
    def __class__(self):
        return self._class or type(self)

    def __repr__(self):
        return repr(self._reference)


class _Callable(_Promise):
    def __call__(self):
        raise TypeError("only a promise")


class _NotKnown(Exception):
    """What a reference will give, or what a macro stands for."""


def _look_at_values(table: Table) -> None:
    for binding in _bindings(table):
        option = options_of(binding.target).get(binding.parameter) if is_checked(binding.target) else None
        try:
            value = _promised(table, binding.value)
        except _NotKnown:
            continue
        mistake = option and (option.mistake(value) or _wrong_factory(option.type, value))
        if mistake:
            macro = isinstance(binding.value, Macro) and table.macro_value(binding.value)
            through = f" (by {binding.value})" if macro else ""
            where = macro.where if macro else binding.where
            table.wrong[binding] = f"{where}: {binding.name}{through} is {shown(value)}: {mistake}"


def _promised(table: Table, value, depth: int = 0):
    if isinstance(value, Macro):
        found = table.macro_value(value)
        if found is None or depth > len(table.macros):
            raise _NotKnown
        return _promised(table, found.value, depth + 1)
    if isinstance(value, Reference):
        if not value.builds:
            return _Callable(value, None)
        given = _gives(value.target)
        if not isinstance(given, type) or given.__module__ == "builtins":
            raise _NotKnown
        return _Promise(value, given)
    if isinstance(value, list | tuple):
        return type(value)(_promised(table, each, depth) for each in value)
    return value


def _gives(target: Callable) -> Any:
    """The class of what a call of `target` gives, None if it does not say."""
    if isinstance(target, type):
        return target
    given = typing.get_type_hints(target).get("return")
    return typing.get_origin(given) or given


def _wrong_factory(annotation, value) -> str | None:
    """A factory of something else than the option is for."""
    wanted = _callable_in(annotation)
    if wanted is None or not isinstance(value, _Callable):
        return None
    given, result = _gives(value._reference.target), wanted[1]
    result = typing.get_origin(result) or result
    if isinstance(given, type) and isinstance(result, type) and not issubclass(given, result):
        return f"should give a {result.__name__}, not a {given.__name__}"
    return None


def _callable_in(annotation) -> tuple[list, Any] | None:
    """Arguments and result of the callable that a type allows, if it allows one."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is collections.abc.Callable:
        return arguments
    if origin in (Annotated, typing.Union, types.UnionType):
        found = (_callable_in(part) for part in (arguments[:1] if origin is Annotated else arguments))
        return next(filter(None, found), None)
    return None


# -- who reads what --


class _Reading:
    """Follows references from what is to be built, and keeps which calls there will be.

    Attributes:
      calls: in which scopes each class or function is called.
      read: bindings and macros whose values these calls get.
      superfluous: lines about arguments that a call gets from its caller, and from a binding too.
    """

    def __init__(self, table: Table):
        self._table = table
        self.calls: dict[Callable, set[Scopes]] = {}
        self.read: dict[Binding, None] = {}
        self.superfluous: list[str] = []
        self._replaced: dict[Callable, list[Binding]] = {}
        for binding in table.replaced:
            self._replaced.setdefault(binding.target, []).append(binding)

    def visit(self, target: Callable, scopes: Scopes, given: list[str] | None) -> None:
        """A call in a scope, to which its caller gives the arguments named; None if that is not known."""
        if scopes in self.calls.setdefault(target, set()):
            return
        self.calls[target].add(scopes)
        bound = self._table.bound(target, scopes)
        if given is not None:
            self._find_missing(target, scopes, bound, given)
        for name, binding in bound.items():
            self.read[binding] = None
            if binding in self._table.wrong:
                self._follow(binding, scopes)
                continue
            for reference, at in self._references(binding.value, scopes, 0):
                if reference.builds:
                    self.visit(reference.target, reference.scopes or at, [])
                else:
                    given = self._given(target, name, reference.target)
                    self.visit(reference.target, reference.scopes, given)

    def visit_replaced(self) -> None:
        """What was meant to be called and has been left out on purpose: a generation dropped by `--param`, say."""
        known = 0
        while known < len(calls := [(target, s) for target, scopes in self.calls.items() for s in scopes]):
            known = len(calls)
            for target, scopes in calls:
                for binding in self._replaced.get(target, ()):
                    if scopes[: len(binding.scopes)] == binding.scopes:
                        self._follow(binding, scopes)

    def _follow(self, binding: Binding, scopes: Scopes) -> None:
        for reference, at in self._references(binding.value, scopes, 0):
            self.visit(reference.target, reference.scopes or at, None)

    def _references(self, value, scopes: Scopes, depth: int) -> Iterator[tuple[Reference, Scopes]]:
        yield from ((reference, scopes) for reference in references(value))
        for macro in _macros_in(value):
            found = self._table.macro_value(macro)
            if found is not None and depth <= len(self._table.macros):
                self.read[found] = None
                yield from self._references(found.value, tuple(macro.name.split("/")), depth + 1)

    def _given(self, owner: Callable, parameter: str, target: Callable) -> list[str] | None:
        option = options_of(owner).get(parameter) if is_checked(owner) else None
        wanted = _callable_in(option.type) if option else None
        return positional(target)[: len(wanted[0])] if wanted and wanted[0] is not ... else None

    def _find_missing(self, target, scopes, bound, given) -> None:
        for name in given:
            if name in bound and bound[name] not in self._table.wrong:
                binding = bound[name]
                line = f"{binding.where}: {binding.name} is given by the program: leave the binding out"
                self.superfluous.append(line)
        needed = [
            name
            for name, parameter in parameters(target).items()
            if parameter.default is parameter.empty and parameter.kind in (1, 3) and name not in (*bound, *given)
        ]
        if needed:
            where = name_in(target, scopes)
            near = nearest("/".join(scopes), ["/".join(s) for s, t in self._table.bindings if t is target and s])
            line = f"@{where} needs {', '.join(needed)}: bind {where}.{needed[0]}{near.replace(': did', '; or did')}"
            self._table.missing[target, scopes] = line


def _unread(table: Table, calls: dict[Callable, set[Scopes]]) -> Iterator[str]:
    """Bindings under a scope in which nothing is called that would take them."""
    entered = {"/".join(s[:depth]) for scopes in calls.values() for s in scopes for depth in range(1, len(s) + 1)}
    for (scopes, target), bound in table.bindings.items():
        if scopes and not any(s[: len(scopes)] == scopes for s in calls.get(target, ())):
            scope = "/".join(scopes)
            if scope in entered:
                hint = f": {target.__name__} is not made in that scope; refer to it by @{scope}/…{target.__name__}"
            else:
                hint = nearest(scope, entered, 0.4) or f": there are {', '.join(sorted(entered)) or 'none'}"
            first, *more = bound.values()
            others = f" (and {len(more)} more of it)" if more else ""
            yield f"{first.where}: {first.name}{others} has a scope that nothing reads{hint}"
