"""Types of options, as whoever calls from Python meets them."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import pytest

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.options import (
    Address,
    Ascending,
    Count,
    CountOrZero,
    Distinct,
    FileName,
    NotEmpty,
    OneOf,
    Positive,
    checked,
    is_checked,
    options_of,
    shown,
)


class Thing:
    pass


@checked
@dataclasses.dataclass(frozen=True)
class Settings:
    count: Count
    rate: Positive = 1.0
    kind: Annotated[str, OneOf(("lattice", "band"))] = "lattice"
    seconds: Annotated[tuple[Positive, ...], NotEmpty, Ascending] = (1.0,)
    delay: CountOrZero | Annotated[tuple[CountOrZero, ...], Distinct] = 0
    thing: Thing | None = None
    make: Callable[[int], Thing] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    is_on: bool = False
    name: FileName = "a"
    servers: tuple[Address, ...] = ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 0}, "Settings.count is 0: should be greater than or equal to 1"),
        ({"count": True}, "Settings.count is True: should be a whole number"),
        ({"count": "3"}, "should be a whole number"),
        ({"count": 2**40}, "should be less than or equal to"),
        ({"rate": float("nan")}, "Settings.rate is nan: should be a finite number"),
        ({"rate": True}, "should be a number"),
        ({"kind": "latice"}, "none of lattice, band: did you mean lattice?"),
        ({"kind": 3}, "should be a text"),
        ({"seconds": ()}, "at least 1 item"),
        ({"seconds": (2, 1)}, "should be ascending"),
        ({"seconds": (1.0, "a")}, "'a' in it should be a number"),
        ({"seconds": "a"}, r"should be a tuple; one of a single value needs a comma, \('a',\)"),
        ({"delay": -1}, "greater than or equal to 0"),
        ({"delay": (1, 1)}, "has 1 twice"),
        ({"thing": Thing}, "should be a Thing, and is not built: put \\(\\) after its name"),
        ({"thing": 3}, "should be a Thing$"),
        ({"make": 3}, "should be a @reference without \\(\\)"),
        ({"pair": (1.0,)}, "at least 2 items"),
        ({"pair": (1.0, 2.0, 3.0)}, "at most 2 items"),
        ({"is_on": 1}, "should be True or False"),
        ({"name": "a/../b"}, "should be a plain name of a folder"),
        ({"servers": ("host",)}, "should be 'host:port'"),
        ({"rate": -1, "kind": "bnd"}, "Settings.rate is -1: .*; Settings.kind is 'bnd': .* did you mean band"),
    ],
)
def test_a_wrong_value_is_told_by_name_with_what_is_right(values, words):
    with pytest.raises(UserError, match=words) as refused:
        Settings(**{"count": 1, **values})
    assert "\n" not in str(refused.value)


def test_values_stay_as_they_are():
    thing = Thing()
    settings = Settings(3, 1, seconds=[1, 2], delay=(1, 2), thing=thing, make=Thing, pair=[1, 2], servers=["a:1"])
    assert settings.rate == 1 and type(settings.rate) is int
    assert settings.seconds == [1, 2] and settings.thing is thing and settings.delay == (1, 2)
    assert dataclasses.replace(settings, count=4).count == 4
    with pytest.raises(UserError, match="Settings.count"):
        dataclasses.replace(settings, count=-4)


def test_a_function_and_a_constructor_are_held_to_their_types_and_keep_what_they_are():
    @checked
    def area(width: Positive, *, height: Positive = 2.0, label=None, **more: int) -> float:
        """Of a rectangle."""
        return width * height

    class Box:
        @checked
        def grown(self, by: Positive):
            return by

    assert area(3) == 6.0 and area.__doc__ == "Of a rectangle." and area(1, label=object(), other="let through") == 2.0
    with pytest.raises(UserError, match=r"area\.height is 'a': should be a number"):
        area(1, height="a")
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        area()
    assert is_checked(area) and not is_checked(print) and not is_checked([])
    assert {name: option.required for name, option in options_of(area).items()} == {"width": True, "height": False}
    assert Box().grown(2) == 2


def test_a_long_value_is_cut():
    assert shown("x" * 200) == "'" + "x" * 76 + "…"
