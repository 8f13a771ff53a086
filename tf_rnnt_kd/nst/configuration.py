"""A run folder belongs to one configuration: what changes the result may not change on the way, unless on purpose."""

import glob
import os
import re
from collections.abc import Callable, Mapping

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.files import read_text, write_text
from tf_rnnt_kd.preemption import MARKER
from tf_rnnt_kd.progress import say

FILE = "config.gin"
_NOTE = "#!"  # begins the lines that `begin` writes above a configuration
_SHOWN = 10  # changes in an error
# By the last part of the name. None of them moves a weight, a label or a hypothesis; but see `_is_neutral`.
_NEUTRAL = (
    "report_every",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "input_servers",
    "max_skipped",
    "comparisons",
    "hours",
    "Plan.name",
)


def begin(
    work_dir: str,
    config: str,
    *,
    allow_change: bool = False,
    must_be_equal: bool = False,
    is_finished: Callable[[], bool] = lambda: False,
) -> None:
    """Makes the run folder and binds it to its configuration.

    Args:
      work_dir: of the run.
      config: resolved, as text of gin.
      allow_change: go on with another configuration, which is said; the one before is kept as `config-1.gin`, ….
      must_be_equal: refuse any other configuration: workers that report at other steps would not wait for each other.
      is_finished: whether nothing is left to make, so that a change would describe nothing that is in the folder.

    Raises:
      UserError: for a folder begun with another configuration, which differs in more than how often something is
        reported or saved.
    """
    os.makedirs(work_dir, exist_ok=True)
    path = os.path.join(work_dir, FILE)
    before = read_config(path) if os.path.exists(path) else None
    if before == config:
        return
    if before is not None and must_be_equal and not is_finished():
        raise UserError(f"{path} differs from this worker's configuration: start all workers by the same command")
    changes = check(work_dir, config, allow_change=allow_change)
    if changes and is_finished():
        say(f"  all is finished, so {', '.join(changes)} changes nothing: {path} stays as it is")
        return
    if changes:
        _tell(work_dir, before, config, changes)
    _write(work_dir, config)


def read_config(path: str) -> str:
    """A configuration as it was given, without what `begin` wrote above it."""
    lines = read_text(path, remedy="restore it, or choose another folder").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(_NOTE))


def find_home(path: str) -> str | None:
    """The run folder, or folder of `prepare`, that a path lies in; None where it lies in none."""
    folder = os.path.abspath(path)
    while os.path.dirname(folder) != folder:
        is_generation = os.path.exists(os.path.join(folder, "model.json"))
        tokenizer = os.path.join(records_folder(folder), "tokenizer")
        if os.path.exists(os.path.join(folder, FILE)) and os.path.isdir(tokenizer) and not is_generation:
            return folder
        folder = os.path.dirname(folder)
    return None


def records_folder(home: str) -> str:
    """Where what `find_home` found keeps tokenizer and records."""
    records = os.path.join(home, "records")
    return records if os.path.isdir(records) else home


def finished_by_others(work_dir: str, config: str) -> list[str]:
    """Trained generations, as `seed-S/NAME`, whose own configuration differs in what may change a result."""
    return [
        os.path.relpath(os.path.dirname(path), work_dir)
        for path in _finished(work_dir)
        if find_changes(read_config(os.path.join(os.path.dirname(path), FILE)), config)
    ]


def check(work_dir: str, config: str, *, allow_change: bool = False) -> dict[str, tuple[str, str]]:
    """What `begin` would change of the folder's configuration, as in `find_changes`; nothing is written.

    Raises:
      UserError: `begin` would refuse it.
    """
    path = os.path.join(work_dir, FILE)
    if not os.path.exists(path) or _is_untouched(work_dir):
        return {}
    changes = find_changes(read_config(path), config)
    if changes and not allow_change:
        told = [f"{name} = {old} there, {name} = {new} now" for name, (old, new) in changes.items()]
        more = [f"and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
        listed = "; ".join([*told[:_SHOWN], *more])
        raise UserError(
            f"{work_dir} was begun with another configuration ({listed}): "
            "restore it, choose another --work_dir, or give --allow_config_change, which keeps what is finished"
        )
    return changes


def find_changes(before: str, now: str) -> dict[str, tuple[str, str]]:
    """Parameters that may change the result and differ: name -> (value before, value now)."""
    old, new = _read_bindings(before), _read_bindings(now)
    names = [*old, *(name for name in new if name not in old)]
    names.sort(key=lambda name: " " in name)  # imports last: they follow from something else
    pairs = {name: (old.get(name, "(nothing)"), new.get(name, "(nothing)")) for name in names}
    return {
        name: pair
        for name, pair in pairs.items()
        if pair[0] != pair[1] and not (_is_neutral(name, old) and _is_neutral(name, new))
    }


def _is_untouched(work_dir):
    """Whether nothing was made there yet, so that whoever mends a first attempt has nothing to lose."""
    return set(os.listdir(work_dir)) <= {FILE, MARKER}


def _tell(work_dir: str, before: str, config: str, changes: Mapping[str, tuple[str, str]]) -> None:
    """Says what changes for whom, and keeps the configuration of before."""
    for name, (old, new) in changes.items():
        say(f"  {name} = {new} from here on, {old} before")
    for name in finished_by_others(work_dir, config):
        say(f"  {name} is finished and keeps its own: {os.path.join(work_dir, name, FILE)}")
    number = 1
    while os.path.exists(kept := os.path.join(work_dir, f"config-{number}.gin")):
        number += 1
    write_text(kept, before)


def _write(work_dir: str, config: str) -> None:
    """Above a configuration stand the generations that it does not describe."""
    others = finished_by_others(work_dir, config)
    notes = "".join(f"{_NOTE} {name} was made by another configuration: {name}/{FILE}\n" for name in others)
    write_text(os.path.join(work_dir, FILE), notes + config)


def _finished(work_dir: str) -> list[str]:
    """The `model.json` of each trained generation that kept its configuration."""
    paths = sorted(glob.glob(os.path.join(glob.escape(work_dir), "seed-*", "*", "model.json")))
    return [path for path in paths if os.path.exists(os.path.join(os.path.dirname(path), FILE))]


def _read_bindings(config: str) -> dict[str, str]:
    """Name -> value of each binding and import in gin's own form, where a value may go on over indented lines."""
    bindings, name = {}, None
    for line in config.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        begins = re.fullmatch(r"([\w./]+) =(.*)", line)
        if begins:
            name, value = begins.groups()
            bindings[name] = value.strip(" \\")
        elif line.startswith((" ", "\t")) and name:
            bindings[name] = f"{bindings[name]} {line.strip()}".strip()
        else:
            bindings[line.strip()] = "(used)"
    return bindings


def _is_neutral(name: str, bindings: dict[str, str]) -> bool:
    """Whether a parameter, or all that reads a macro, leaves the result as it is. One that is absent does."""
    if name.endswith(".evaluate_every") and any("best" in v for n, v in bindings.items() if n.endswith(".handed_on")):
        return False  # the weights that are handed on are among those that were evaluated
    if name.endswith(tuple(f".{known}" for known in _NEUTRAL)) or name in _NEUTRAL:
        return True
    if "." in name or name not in bindings:
        return name not in bindings
    readers = [reader for reader, value in bindings.items() if re.search(rf"%{re.escape(name)}\b", value)]
    return bool(readers) and all(_is_neutral(reader, bindings) for reader in readers)
