"""The chain of an artefact in words: what it was made from, that from what, and what no longer fits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.lineage import FILE, Lineage, code_version, examine, read_lineage, shown
from tf_rnnt_kd.nst import configuration
from tf_rnnt_kd.nst.artefacts import STALE, hash_of


def explain(path: str, data: Mapping[str, Sequence[str]] | None = None) -> str:
    """Text for people: a line for each input, those of an input indented below it.

    Args:
      path: of an artefact, or of a folder with artefacts in it, such as a run.
      data: what is known to have changed in the corpora: path of a record set or tokenizer -> what.

    Raises:
      UserError: there is nothing made by this project.
    """
    found = list(find_artefacts(path))
    if not found:
        raise UserError(f"{path} has no lineage: name a run folder, or something that a run or a command has made")
    told = _Told({os.path.realpath(artefact): list(changes) for artefact, changes in (data or {}).items()})
    lines = [f"this code  {code_version()}"]
    for artefact in found:
        lines += [] if told.has(artefact) else ["", *told.chain(artefact)]
    stale = {artefact: changes for artefact, changes in told.changes.items() if changes}
    lines += ["", *(f"no longer fits: {artefact}: {'; '.join(changes)}" for artefact, changes in stale.items())]
    return "\n".join(lines if stale else [*lines, "everything fits what it was made from"])


def find_artefacts(path: str) -> Iterator[str]:
    """The artefacts at or below a path: those of a folder before those inside it, what was made of all at the end."""
    if os.path.isfile(path):
        yield from [path] if read_lineage(path) is not None else []
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if STALE not in name)
        if FILE in names:
            yield folder
        if folder != path:
            yield from _files_in(folder, [*folders, *names])
    yield from _files_in(path, os.listdir(path) if os.path.isdir(path) else [])


def _files_in(folder: str, names: Sequence[str]) -> Iterator[str]:
    """The files of a folder that have a lineage beside them."""
    for name in sorted(name for name in names if name.endswith(f".{FILE}")):
        lineage = read_lineage(os.path.join(folder, name.removesuffix(f".{FILE}") + ".json"))
        if lineage is not None:
            yield os.path.join(folder, lineage.name)


class _Told:
    """Remembers what was examined and told, so that a chain that many share is compared and told once."""

    def __init__(self, data: Mapping[str, list[str]]):
        self._data = data
        self._told: set[str] = set()
        self._above: list[str] = []
        self.changes: dict[str, list[str]] = {}

    def has(self, artefact: str) -> bool:
        """Whether it was told already, as an input of another."""
        return artefact in self._told

    def chain(self, artefact: str, indent: int = 0) -> list[str]:
        """The lines of an artefact and of all that it was made from."""
        lineage = read_lineage(artefact)
        space = "  " * indent
        if lineage is None:
            return [f"{space}{artefact}: {shown(hash_of(artefact))}, without lineage"]
        fits = self._examine(artefact)
        own = "unfinished" if lineage.hash is None else shown(lineage.hash)
        line = f"{space}{lineage.kind} {artefact}: {own}, {'NO LONGER FITS' if fits else 'fits'}"
        if artefact in self._told:
            itself = artefact in self._above
            return [f"{line} ! it says that it was made from itself" if itself else f"{line} (see above)"]
        self._told.add(artefact)
        lines = [line]
        lines += [f"{space}  ! {change}" for change in fits]
        if lineage.code != code_version():
            lines.append(f"{space}  code: {lineage.code}")
        config = os.path.join(artefact, configuration.FILE)
        if os.path.exists(config):
            lines.append(f"{space}  config: {config}: {shown(hash_of(config))}")
        self._above.append(artefact)
        lines += self._inputs(lineage, artefact, indent + 1)
        self._above.pop()
        return lines

    def _examine(self, artefact: str) -> list[str]:
        if artefact not in self.changes:
            known = self._data.get(os.path.realpath(artefact), [])
            self.changes[artefact] = list(dict.fromkeys([*examine(artefact, hash_of), *known]))
        return self.changes[artefact]

    def _inputs(self, lineage: Lineage, artefact: str, indent: int) -> list[str]:
        folder = artefact if lineage.name == "." else os.path.dirname(artefact)
        return list(self._list(lineage.inputs, lineage.places, folder, "  " * indent, indent))

    def _list(self, inputs: Mapping[str, Any], places: Mapping[str, Any], folder: str, space: str, indent: int):
        for name, value in inputs.items():
            place = places.get(name)
            if value in (None, {}) and not place:
                continue
            if isinstance(value, Mapping):
                yield f"{space}{name}"
                yield from self._list(value, place or {}, folder, space + "  ", indent + 1)
            elif isinstance(place, str):
                first, *rest = self.chain(os.path.normpath(os.path.join(folder, place)), 0)
                yield f"{space}{name}: {first}"
                yield from (f"{space}{line}" for line in rest)
            else:
                yield f"{space}{name}: {shown(value)}"
