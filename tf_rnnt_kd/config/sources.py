"""The statements of gin files, read and not yet followed: nothing is imported here, so that a reader can say no."""

import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from gin import config_parser

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.options import nearest, shown

PACKAGE = __name__.partition(".")[0]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Reference:
    """`@scope/name`, a class or function, or `@scope/name()`, what it gives.

    Attributes:
      scopes: of its own; none for those where it stands.
      selector: its name, as written.
      builds: whether `()` follows.
      target: what the name means, once it is known.
    """

    def __init__(self, scoped: str, builds: bool):
        *scopes, self.selector = scoped.split("/")
        self.scopes, self.builds, self.target = tuple(scopes), builds, None

    def __repr__(self):
        return f"@{'/'.join([*self.scopes, self.selector])}{'()' if self.builds else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str

    def __repr__(self):
        return f"%{self.name}"


@dataclasses.dataclass(eq=False)
class Binding:
    """`scope/name.parameter = value`, or `NAME = value` of a macro, which has no parameter.

    Attributes:
      scopes: in which it holds.
      selector: the name.
      parameter: bound to the value.
      value: literals, references and macros in them.
      source: where it was written.
      line: of the source.
      target: what the name means, once it is known.
    """

    scopes: tuple[str, ...]
    selector: str
    parameter: str
    value: Any
    source: "Source"
    line: int
    target: Any = None

    @property
    def name(self) -> str:
        """As it was written."""
        return ".".join(["/".join([*self.scopes, self.selector]), *([self.parameter] if self.parameter else [])])

    @property
    def where(self) -> str:
        """File and line, or the parameter."""
        return self.source.name if self.source.is_param else f"{self.source.name}, line {self.line}"


@dataclasses.dataclass(eq=False)
class Source:
    """A file, or a parameter of the command line.

    Attributes:
      name: for people.
      is_param: whether it is of the command line.
      imports: its import statements.
    """

    name: str
    is_param: bool = False
    imports: list[config_parser.ImportStatement] = dataclasses.field(default_factory=list)


class Sources:
    """Gin files with all that they include, and parameters after them, as one list of bindings.

    Attributes:
      all: in the order in which they begin.
      bindings: in the order in which they hold: a later one replaces an earlier one of the same name.
      mistakes: that keep something from being read, a line each.
    """

    def __init__(self, paths: Sequence[str], params: Sequence[str] = ()):
        self.all: list[Source] = []
        self.bindings: list[Binding] = []
        self.mistakes: list[str] = []
        for path in paths:
            self._read_file(_find(path), path, ())
        for param in params:
            self._read_param(param)

    def foreign_modules(self) -> list[str]:
        """Modules that are imported and are not of this package: their code runs with the rights of the reader."""
        modules = {statement.module for source in self.all for statement in source.imports}
        return sorted(module for module in modules if not is_within(module, [PACKAGE]))

    def _read_file(self, path: str, name: str, including: tuple[str, ...]) -> None:
        source = Source(name)
        self.all.append(source)
        try:
            with open(path, encoding="utf-8-sig") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            self.mistakes.append(f"{name} can't be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}")
            return
        for statement in self._statements(text, source):
            if isinstance(statement, config_parser.IncludeStatement):
                where = f"{name}, line {statement.location.line_num}"
                self._include(statement.filename, where, (*including, path))
            else:
                self._take(statement, source)

    def _include(self, name: str, where: str, including: tuple[str, ...]) -> None:
        beside = os.path.dirname(including[-1])
        found = [path for path in (os.path.join(beside, name), os.path.join(ROOT, name)) if os.path.isfile(path)]
        path = os.path.realpath(found[0]) if found else ""
        if not found:
            self.mistakes.append(f"{where}: there is no {name!r}, neither beside the file nor in {ROOT}")
        elif path in map(os.path.realpath, including):
            self.mistakes.append(f"{where}: {name!r} includes itself")
        else:
            self._read_file(path, name, including)

    def _read_param(self, param: str) -> None:
        name = f"--param {shown(param)}"
        source = Source(name, is_param=True)
        self.all.append(source)
        if not re.match(r"^[\w./]+\s*=\s*\S", param):
            self.mistakes.append(f"{source.name} is not of the form NAME=value")
            return
        source.name += " (a text needs quotes of its own)"
        statements = list(self._statements(param, source))
        source.name = name
        if any(not isinstance(each, config_parser.BindingStatement) for each in statements) or len(statements) > 1:
            self.mistakes.append(f"{source.name} is more than one NAME=value: give --param several times")
            return
        for statement in statements:
            self._take(statement, source)

    def _statements(self, text: str, source: Source) -> Iterator:
        """The statements of a text up to the first that can't be read, which is a mistake."""
        try:
            parser = config_parser.ConfigParser(text, _Delegate())
            while (statement := parser.parse_statement()) is not None:
                yield statement
        except UserError:
            raise
        except Exception as error:  # of the parser and of Python's tokenizer, which raise whatever comes
            line = getattr(error.args[-1], "line_num", None) if error.args else None
            at = f" (line {line})" if line and not source.is_param else ""
            self.mistakes.append(f"{source.name}: {_reason(error)}{at}")

    def _take(self, statement, source: Source) -> None:
        if isinstance(statement, config_parser.ImportStatement):
            if not statement.module.startswith("__gin__."):
                source.imports.append(statement)
        elif isinstance(statement, config_parser.BindingStatement):
            scopes = tuple(filter(None, statement.scope.split("/")))
            line = statement.location.line_num
            self.bindings.append(Binding(scopes, statement.selector, statement.arg_name, statement.value, source, line))


def is_within(module: str, packages: Collection[str]) -> bool:
    """Whether a module is one of the packages, or in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)


def _reason(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    if isinstance(error, RecursionError | MemoryError):
        return "brackets are nested too deeply"
    if isinstance(error, StopIteration):
        return "ends within a statement"
    if not lines:
        return type(error).__name__
    if lines[0].startswith("malformed node"):
        return "the value is neither a number, a text in quotes, a tuple nor a @reference"
    return lines[0]


def _find(path: str) -> str:
    for candidate in (path, os.path.join(ROOT, path)):
        if "\0" not in path and os.path.isfile(candidate):
            return os.path.abspath(candidate)
    folder = os.path.join(ROOT, "configs")
    known = sorted(f"configs/{name}" for name in os.listdir(folder) if name.endswith(".gin"))
    hint = nearest(path, known, 0.4) or f": there are {', '.join(known)}"
    raise UserError(f"no config file {path!r}{hint}")
