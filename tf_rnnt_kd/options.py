"""What an option may be: types that say so, and `checked`, which holds whoever calls to them.

A class or function that a configuration may name is decorated by `checked`, and its arguments are annotated by the
types below. So a wrong value is known before anything is made of it, in words that are the same in a gin file and in
Python. Values are looked at, never converted: a tuple stays one, and 1 in place of 1.0 stays an int.
"""

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import pydantic
from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic_core import PydanticCustomError, core_schema

from tf_rnnt_kd.errors import UserError

_STRICT = pydantic.ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_SCALARS = (int, float, str, bool, types.NoneType)
_LARGEST = 2**31 - 1
_Target = TypeVar("_Target", bound=Callable)

CHECKED: dict[Callable, inspect.Signature] = {}  # all that `checked` has decorated


def nearest(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """`: did you mean …?` where one of the known names is nearly `name`, else nothing."""
    near = difflib.get_close_matches(name, sorted(known), 1, cutoff)
    return f": did you mean {near[0]}?" if near else ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Something that values of a type have to fulfil besides.

    Attributes:
      find: gives what is wrong with a value, in words that go on from "is VALUE: ", or None.
    """

    find: Callable[[Any], str | None]

    def __get_pydantic_core_schema__(self, source, handler):
        return pydantic.AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def _check(self, value):
        mistake = self.find(value)
        if mistake:
            raise PydanticCustomError("rule", "{mistake}", {"mistake": mistake})
        return value


@dataclasses.dataclass(frozen=True)
class OneOf(Rule):
    """A name out of a registry.

    Attributes:
      known: the names.
    """

    known: tuple[str, ...] = ()

    def __init__(self, known: Collection[str]):
        object.__setattr__(self, "known", tuple(known))
        object.__setattr__(self, "find", self._find)

    def _find(self, value):
        if value not in self.known:
            return f"none of {', '.join(self.known)}{nearest(value, self.known)}"


def _not_ascending(values):
    if any(later <= earlier for earlier, later in zip(values, values[1:], strict=False)):
        return "should be ascending"


def _descending(values):
    if any(later < earlier for earlier, later in zip(values, values[1:], strict=False)):
        return "should not be descending"


def _not_distinct(values):
    twice = [value for value in values if values.count(value) > 1]
    return f"has {twice[0]!r} twice" if twice else None


def _not_printed(text):
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        return "should be one line without control characters"


def _no_file_name(name):
    if (
        re.search(r"[/\\\x00-\x1f\x7f]", name)
        or name != name.strip()
        or name.startswith(".")
        or not 1 <= len(name) <= 99
    ):
        return "should be a plain name of a folder: 1 to 99 characters, no / or \\, no . at its beginning"


def _no_address(text):
    port = text.rpartition(":")[2]
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", text) or not 0 < int(port) < 2**16:
        return "should be 'host:port'"


Finite = float  # NaN and infinities are no numbers here
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
FractionBelowOne = Annotated[float, Ge(0), Lt(1)]
FractionInside = Annotated[float, Gt(0), Lt(1)]
Count = Annotated[int, Ge(1), Le(_LARGEST)]
CountOrZero = Annotated[int, Ge(0), Le(_LARGEST)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Text = Annotated[str, Len(1), Rule(_not_printed)]
FileName = Annotated[str, Rule(_no_file_name)]
Address = Annotated[str, Rule(_no_address)]
NotEmpty = Len(1)
Ascending = Rule(_not_ascending)
NotDescending = Rule(_descending)
Distinct = Rule(_not_distinct)


@dataclasses.dataclass(frozen=True)
class Option:
    """One argument of something that is `checked`.

    Attributes:
      type: its annotation.
      required: whether it has no default.
    """

    type: Any
    required: bool

    def mistake(self, value: Any) -> str | None:
        """What is wrong with a value, in words that go on from "is VALUE: "; None if nothing is."""
        try:
            _adapter(self.type).validate_python(value)
        except pydantic.ValidationError as error:
            return _in_words(self.type, value, error)
        return None


def checked(target: _Target) -> _Target:
    """Decorates a class or a function: whoever calls it with a value that its annotations don't allow is told.

    The mistakes of a call are one `UserError`, before anything of the call is done. Arguments without annotation, and
    those of `**kwargs`, are let through. A class has its constructor wrapped, subclasses inherit that.
    """
    function = target.__init__ if isinstance(target, type) else target
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            given = {}  # the call says so itself
        options = options_of(owner)
        mistakes = [
            f"{owner.__name__}.{name} is {shown(value)}: {mistake}"
            for name, value in given.items()
            if name in options and (mistake := options[name].mistake(value))
        ]
        if mistakes:
            raise UserError("; ".join(mistakes))
        return function(*args, **kwargs)

    call.__signature__ = signature  # Keras reads the constructors of its layers
    owner = call
    if isinstance(target, type):
        target.__init__, owner = call, target
    CHECKED[owner] = signature
    return owner


def is_checked(target: Any) -> bool:
    """Whether a class or function was decorated by `checked`."""
    return isinstance(target, collections.abc.Hashable) and target in CHECKED


@functools.cache
def options_of(target: Callable) -> Mapping[str, Option]:
    """The arguments by name of something that is `checked`, without `self` and `**kwargs`."""
    function = target.__init__ if isinstance(target, type) else target
    hints = typing.get_type_hints(function, include_extras=True)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: Option(hints[name], parameter.default is parameter.empty)
        for name, parameter in CHECKED[target].parameters.items()
        if parameter.kind in named and name in hints
    }


def shown(value: Any) -> str:
    """A value as an error shows it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}…"


@dataclasses.dataclass(frozen=True)
class _InstanceOf:
    """In place of pydantic's own, which looks into dataclasses."""

    wanted: type

    def __get_pydantic_core_schema__(self, source, handler):
        return core_schema.is_instance_schema(self.wanted)


@functools.cache
def _adapter(annotation) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(_looked_at(annotation), config=_STRICT)


def _looked_at(annotation):
    """The annotation as pydantic has to see it: lists are as good as tuples, and objects are not looked into."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return Annotated[(_looked_at(arguments[0]), *arguments[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_looked_at(part) for part in arguments)]  # noqa: UP007  there is no other way
    if origin is tuple and arguments[-1] is not ...:
        assert len(set(arguments)) == 1, annotation
        return Annotated[Sequence[_looked_at(arguments[0])], Len(len(arguments), len(arguments))]
    if origin in (tuple, collections.abc.Sequence):
        return Sequence[_looked_at(arguments[0])]
    if origin is collections.abc.Callable:
        return Callable
    if annotation in _SCALARS:
        return annotation
    return Annotated[Any, _InstanceOf(annotation)]


def _in_words(annotation, value, error: pydantic.ValidationError) -> str:
    """The errors of all branches of a type, as one phrase."""
    phrases = [_phrase(detail, value) for detail in error.errors(include_url=False)]
    if isinstance(value, str) and any(detail["type"].startswith("sequence") for detail in error.errors()):
        return f"should be a tuple; one of a single value needs a comma, ({shown(value)},)"
    return " or ".join(dict.fromkeys(phrases))


def _phrase(detail, value) -> str:
    kind, message = detail["type"], _WORDS.get(detail["type"], detail["msg"].replace("Input ", ""))
    if kind == "is_instance_of":
        wanted = detail["ctx"]["class"]
        message = "should be a tuple" if wanted == "Sequence" else f"should be a {wanted}"
        if isinstance(value, type) or inspect.isroutine(value):
            message += ", and is not built: put () after its name"
    inside = detail["input"]
    return (f"{shown(inside)} in it " if inside is not value and kind != "rule" else "") + message


_WORDS = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be True or False",
    "string_type": "should be a text",
    "none_required": "should be None",
    "callable_type": "should be a @reference without ()",
    "string_too_short": "should not be empty",
}
