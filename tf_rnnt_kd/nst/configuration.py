"""A run folder belongs to one configuration: what changes the result may not change on the way, unless on purpose."""

import os
import re

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.results import write_text
from tf_rnnt_kd.preemption import MARKER
from tf_rnnt_kd.progress import say

_FILE = "config.gin"
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


def begin(work_dir: str, config: str, *, allow_change: bool = False, must_be_equal: bool = False) -> None:
    """Makes the run folder and binds it to its configuration.

    Args:
      work_dir: of the run.
      config: resolved, as text of gin.
      allow_change: go on with another configuration, which is said; the one before is kept as `config-1.gin`, ….
      must_be_equal: refuse any other configuration: workers that report at other steps would not wait for each other.

    Raises:
      UserError: for a folder begun with another configuration, which differs in more than how often something is
        reported or saved.
    """
    os.makedirs(work_dir, exist_ok=True)
    path = os.path.join(work_dir, _FILE)
    before = _read(work_dir)
    if before == config:
        return
    if before is not None and must_be_equal:
        raise UserError(f"{path} differs from this worker's configuration: start all workers by the same command")
    changes = check(work_dir, config, allow_change=allow_change)
    if changes:
        _keep(work_dir, before, changes)
    write_text(path, config)


def check(work_dir: str, config: str, *, allow_change: bool = False) -> dict[str, tuple[str, str]]:
    """What `begin` would change of the folder's configuration, as in `find_changes`; nothing is written.

    Raises:
      UserError: `begin` would refuse it.
    """
    before = _read(work_dir)
    if before is None or _is_untouched(work_dir):
        return {}
    changes = find_changes(before, config)
    for name, (old, new) in changes.items():
        if not allow_change:
            raise UserError(
                f"{work_dir} was begun with another configuration ({name} = {old} there, {name} = {new} now): "
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
    return set(os.listdir(work_dir)) <= {_FILE, MARKER}


def _read(work_dir):
    path = os.path.join(work_dir, _FILE)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()


def _keep(work_dir, before, changes):
    for name, (old, new) in changes.items():
        say(f"  {name} = {new} from here on, {old} before")
    number = 1
    while os.path.exists(kept := os.path.join(work_dir, f"config-{number}.gin")):
        number += 1
    write_text(kept, before)


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
