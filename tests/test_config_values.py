"""One wrong value and more of every option there is, and gin files that were damaged by chance: a line each."""

import collections.abc
import importlib
import pathlib
import pkgutil
import random
import subprocess
import sys
import types
import typing
from typing import Annotated, Any

import annotated_types
import pytest

import tf_rnnt_kd
from tests.test_config import RUNS, needed
from tf_rnnt_kd.config import load_plan
from tf_rnnt_kd.config.names import Names
from tf_rnnt_kd.config.sources import PACKAGE, Sources
from tf_rnnt_kd.config.table import parameters, references
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.options import CHECKED, OneOf, Rule, is_checked, options_of

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("data", "features", "losses", "models", "nst", "text", "training", "labelling", "evaluation", "serving")
# Of rules that are written as functions: what breaks them, whatever else holds.
BREAKING = {
    "_not_ascending": ["(3.0, 2.0)", "(2.0, 2.0)"],
    "_descending": ["(3.0, 2.0)"],
    "_not_distinct": ["(1, 1)", "('a', 'a')"],
    "_not_printed": ["'a\\nb'", "'\\x00'"],
    "_no_file_name": ["'a/b'", "'..'", "''", "'.a'", "' a'", "'a\\\\nb'", "'a\\\\x00'"],
    "_no_address": ["'host'", "'host:0'", "'host:99999'", "'a/b:1'"],
}


def import_all():
    for package in PACKAGES:
        for module in pkgutil.walk_packages([f"{ROOT}/{PACKAGE}/{package}"], f"{PACKAGE}.{package}."):
            importlib.import_module(module.name)


def configurable():
    """Everything of the package that a configuration may name."""
    import_all()
    return [target for target in CHECKED if target.__module__.startswith(f"{PACKAGE}.")]


def wrong_values(annotation) -> list[str]:
    """Values in gin's words that a type does not allow, whatever the rest of the plan is."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return [*(value for rule in arguments[1:] for value in breaking(rule)), *wrong_values(arguments[0])]
    if origin in (typing.Union, types.UnionType):
        return wrong_values(next(part for part in arguments if part is not types.NoneType))
    if annotation is int:
        return ["'3'", "1.5", "True", "1e999"]
    if annotation is float:
        return ["'3'", "1e999", "True", "(1.0,)"]
    if annotation is str:
        return ["3", "True", "1.5"]
    if annotation is bool:
        return ["'no'", "1", "0.0"]
    if origin in (tuple, collections.abc.Sequence):
        return ["'text'", "3", *(f"({value},)" for value in wrong_values(arguments[0]))]
    return ["3", "'text'", "True", "@plan.TokenizerSpec" if origin is None else "@plan.TokenizerSpec()"]


def breaking(rule) -> list[str]:
    if isinstance(rule, OneOf):
        return ["'no such name'", f"'{rule.known[0]}x'"]
    if isinstance(rule, Rule):
        return BREAKING[rule.find.__name__]
    return {
        annotated_types.Ge: lambda: [str(rule.ge - 1), str(-(10**9))],
        annotated_types.Gt: lambda: [str(rule.gt), str(rule.gt - 1)],
        annotated_types.Le: lambda: [str(rule.le + 1), str(10**12)],
        annotated_types.Lt: lambda: [str(rule.lt), str(10**12)],
        annotated_types.Len: lambda: ["''"] if rule.min_length == 1 else [],
    }[type(rule)]()


def test_every_option_that_a_config_may_name_has_a_type_that_is_looked_at():
    assert len(configurable()) >= 22
    for target in configurable():
        free = {"self", "args", "kwargs"}
        assert {*parameters(target)} - free == {*options_of(target)}, target
        assert all(option.type not in (Any, object) for option in options_of(target).values()), target


@pytest.mark.parametrize("path", RUNS)
def test_whatever_a_config_names_is_checked(path):
    sources = Sources([path], needed(path))
    names = Names(sources, ())
    named = {names.resolve(b.selector, b.source) for b in sources.bindings if b.parameter}
    named |= {names.resolve(r.selector, b.source) for b in sources.bindings for r in references(b.value)}
    assert named and all(map(is_checked, named))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A plan that knows all modules, and the options by the name that they have there."""
    path, options = tmp_path_factory.mktemp("all") / "all.gin", {}
    modules = sorted({target.__module__ for target in configurable()})
    lines = ["from __gin__ import dynamic_registration"]
    lines += [f"import {module} as m{number}" for number, module in enumerate(modules)]
    path.write_text("\n".join([*lines, "include 'configs/quickstart.gin'", ""]))
    for target in configurable():
        for name, option in options_of(target).items():
            options[f"m{modules.index(target.__module__)}.{target.__qualname__}.{name}"] = option.type
    return path, options


@pytest.mark.parametrize("number", range(12))
def test_wrong_values_of_every_option_are_refused_at_once_in_a_line_each(everything, number):
    path, options = everything
    wrong = {name: wrong_values(kind) for name, kind in options.items()}
    assert len(wrong) > 150 and all(len(set(values)) >= 3 for values in wrong.values())
    with pytest.raises(UserError) as refused:
        load_plan(str(path), [f"{name} = {values[number]}" for name, values in wrong.items() if number < len(values)])
    for name, values in wrong.items():
        if number < len(values):
            lines = [line for line in refused.value.mistakes if f": {name} is " in line]
            assert len(lines) == 1 and "\n" not in lines[0], (name, values[number])


def test_a_handful_of_them_by_the_command():
    values = ["m.seeds = (0, 0)", "m.tests = ()", "m.records_per_shard = 0"]
    params = [f"--param={value.replace('m.', 'plan.Plan.')}" for value in values]
    params += [
        "--param=Training.precision='mixed_float16'",
        "--param=Objective.temperature=0.0",
    ]
    done = dry_run(*params)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines[0] == "error: 5 mistakes in configs/quickstart.gin:" and len(lines) == 6
    assert all(line.startswith("  --param") for line in lines[1:])


def dry_run(*options, config="configs/quickstart.gin"):
    command = [sys.executable, "-m", "tf_rnnt_kd.train", f"--config={config}", "--dry_run", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def damaged(text, rng):
    """A text with one to three things done to it that hands and disks do."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text))
        piece = rng.choice("()[]{}@%=.,/'\"\\:#\n\t\0é0a -") * rng.choice([1, 1, 1, 50])
        lines = text.splitlines(True)
        first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
        text = rng.choice(
            [
                text[:at] + piece + text[at:],
                text[:at] + text[at + rng.randint(1, 9) :],
                text[:at] + chr(ord(text[at]) ^ 1 << rng.randrange(7)) + text[at + 1 :],
                text[: at + 1],
                "".join([*lines[:first], lines[second], *lines[first:]]),
                "".join([*lines[:first], *lines[first + 1 :]]),
            ]
        )
    return text


@pytest.mark.parametrize("config", ["configs/quickstart.gin", "configs/open_text.gin"])
def test_a_damaged_file_is_told_in_lines_or_still_a_plan(config, tmp_path):
    text, path, refused = load_plan(config, needed(config))[1], tmp_path / "damaged.gin", 0
    for seed in range(150):
        path.write_text(damaged(text, random.Random(seed)), newline="")
        try:
            load_plan(str(path))
        except UserError as error:
            refused += 1
            assert error.mistakes and all(mistake.strip() for mistake in error.mistakes), seed
    assert 100 < refused < 150


def test_a_random_parameter_is_told_in_lines_or_still_a_plan():
    rng = random.Random(0)
    parts = ["plan.Plan", "soft/", "loop.Training.steps", "=", " ", "%X", "@plan.Plan", "3", "'a'", "()", *"()[]{}\n"]
    for _ in range(150):
        param = rng.choice(["plan.Plan.name = ", "", "X="]) + "".join(rng.choices(parts, k=rng.randint(1, 6)))
        try:
            load_plan("configs/quickstart.gin", [param])
        except UserError as error:
            assert all(mistake.strip() for mistake in error.mistakes), param


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0", b"(" * 100_000, b"x = " + b"[" * 5_000, b"'''", b"a:\n"])
def test_files_that_are_no_config_are_a_line(content, tmp_path):
    (tmp_path / "mine.gin").write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_plan(str(tmp_path / "mine.gin"))
    assert refused.value.mistakes


def test_the_package_has_a_module_for_each_package_named_here():
    assert {*PACKAGES} <= {module.name for module in pkgutil.iter_modules(tf_rnnt_kd.__path__) if module.ispkg}
