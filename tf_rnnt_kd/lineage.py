"""What an artefact was made from: the one comparison by which nothing derived is used after its inputs changed.

Whoever makes something from something else (a tokenizer, record set, label set, model, evaluation, export) leaves a
lineage beside it: hashes of its inputs, the settings that decide its content, and in the end its own hash.

    FOLDER/lineage.json        of a folder
    NAME.lineage.json          of a file NAME.EXTENSION

`begin` compares it with the inputs of now before anything is made; `finish` adds the hash of what was made; `examine`
compares it, later, with what lies in the places of the inputs.
Inputs are JSON: names to settings or hashes, to None for what is not there, or to such mappings.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pydantic

from tf_rnnt_kd import __version__
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.files import Damaged, dump_signed, read_signed, write_atomically

FILE = "lineage.json"
_EXTENSIONS = (".json", ".arpa", ".txt")  # of artefacts that are files
_SHOWN = 12  # hexadecimal digits of a hash that people read


class Lineage(pydantic.BaseModel):
    """What is written beside an artefact.

    Attributes:
      kind: what it is, in the words of people: "label set".
      inputs: hashes and settings that it was made from.
      places: where inputs were that have a hash, by the same names; relative to the lineage's folder.
      code: see `code_version`; shown, not compared.
      name: of the artefact's file beside the lineage, or "." for its folder.
      hash: of the artefact; None until it is finished.
    """

    model_config = pydantic.ConfigDict(extra="ignore", strict=True)

    kind: str
    inputs: dict[str, pydantic.JsonValue]
    places: dict[str, pydantic.JsonValue]
    code: str
    name: str
    hash: str | None

    @pydantic.model_validator(mode="after")
    def _check_places(self):
        if not _are_paths(self.places) or not _are_within(self.places, self.inputs):
            raise ValueError("places are paths, by the names of inputs")
        return self


def _are_paths(places: Mapping[str, Any]) -> bool:
    inner = places.values()
    return all(_are_paths(place) if isinstance(place, Mapping) else isinstance(place, str) for place in inner)


def _are_within(places: Mapping[str, Any], inputs: Any) -> bool:
    return isinstance(inputs, Mapping) and all(
        name in inputs and (_are_within(place, inputs[name]) if isinstance(place, Mapping) else _is_hash(inputs[name]))
        for name, place in places.items()
    )


def _is_hash(value: Any) -> bool:
    return value is None or isinstance(value, str)


def lineage_path(artefact: str) -> str:
    """Where the lineage of a folder, or of a file with an extension, lies."""
    stem, extension = os.path.splitext(artefact)
    return f"{stem}.{FILE}" if extension in _EXTENSIONS else os.path.join(artefact, FILE)


def begin(
    artefact: str, kind: str, inputs: Mapping[str, Any], places: Mapping[str, Any], *, anew: bool = False
) -> bool:
    """Says what is about to be made from what, or makes sure that what is there was made from the same.

    Args:
      artefact: path of the folder or file to be made.
      kind: what it is.
      inputs: hashes and settings that decide its content.
      places: paths of those inputs that have a hash, by the same names.
      anew: whatever is there will be overwritten, so it need not fit.

    Returns:
      Whether something was begun there already, which fits.

    Raises:
      UserError: what is there was made from something else.
    """
    found = None if anew else read_lineage(artefact)
    changes = find_changes(found.inputs, inputs) if found else []
    if found is not None and found.kind != kind:
        changes = [f"it is a {found.kind}, no {kind}"]
    if changes:
        raise stale_error({artefact: changes})
    if found is None:
        name = os.path.basename(artefact) if os.path.splitext(artefact)[1] in _EXTENSIONS else "."
        given = {"inputs": _plain(inputs), "places": _relative(_folder(artefact), places)}
        _write(artefact, Lineage(kind=kind, code=code_version(), name=name, hash=None, **given))
    return found is not None


def finish(artefact: str, artefact_hash: str) -> None:
    """Adds the hash of what was made."""
    found = read_lineage(artefact)
    if found is not None and found.hash != artefact_hash:
        _write(artefact, found.model_copy(update={"hash": artefact_hash}))


def read_lineage(artefact: str) -> Lineage | None:
    """What `begin` and `finish` wrote; None where there is nothing.

    Raises:
      UserError: the file is damaged.
    """
    path = lineage_path(artefact)
    if not os.path.lexists(path):
        return None
    found = read_signed(path, Lineage)
    own = os.path.normpath(lineage_path(os.path.join(os.path.dirname(path), found.name)))
    if own != os.path.normpath(path):
        raise Damaged(path, f"it is the lineage of {shown(found.name)!r}")
    return found


def examine(artefact: str, hash_of: Callable[[str], str | None]) -> list[str]:
    """One phrase for each thing that no longer is what the artefact was made from.

    The artefact itself counts too, unless it is not there: then nothing is wrong but that it has to be made.

    Args:
      artefact: path of a folder or file.
      hash_of: the hash of what lies at a path; None where there is nothing.
    """
    found = read_lineage(artefact)
    if found is None:
        return ["it has no lineage: another version made it, or it was copied"]
    changes = find_changes(found.inputs, _looked_up(found.inputs, found.places, _folder(artefact), hash_of))
    now = hash_of(artefact)
    if None not in (found.hash, now) and now != found.hash:
        changes.append(f"it was {shown(found.hash)}, is {shown(now)}")
    return changes


def stale_error(problems: Mapping[str, Sequence[str]]) -> UserError:
    """The error for artefacts that no longer fit: path -> what changed."""
    listed = "; ".join(f"{path} ({', '.join(changes)})" for path, changes in problems.items())
    return UserError(
        f"what this was made from has changed: {listed}: restore it, choose another folder, or give --remake, which "
        "makes again what no longer fits"
    )


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each input that differs.

    Args:
      before: as the artefact holds it; mappings in it are compared name by name.
      now: as it would be made now.

    Example:
      >>> find_changes({"codec": "factored", "records": {"a": 1}}, {"codec": "factored", "records": {"a": 2, "b": 3}})
      ['records a was 1, is 2', 'records b was absent, is 3']
    """
    before, now, changes = _plain(before), _plain(now), []
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += [f"{name} {change}" for change in find_changes(old, new)]
        elif old != new:
            changes.append(f"{name} was {shown(old)}, is {shown(new)}")
    return changes


def fingerprint(parts: Iterable[str]) -> str:
    """sha256 of texts in their order; each is hashed with its length, so no two lists share it.

    Example:
      >>> fingerprint(["ab", "c"]) == fingerprint(["a", "bc"])
      False
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


@functools.cache
def code_version() -> str:
    """The version, and the sha256 of the package's sources: which code made an artefact."""
    digest, root = hashlib.sha256(), os.path.dirname(os.path.abspath(__file__))
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(name for name in names if name.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(file.read())
    return f"{__version__}+{digest.hexdigest()[:_SHOWN]}"


def shown(value: Any) -> str:
    """An input for people: a hash is cut, what is not there is absent."""
    text = "absent" if value is None else str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:_SHOWN] if is_hash else text


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _looked_up(inputs: Mapping[str, Any], places: Mapping[str, Any], folder: str, hash_of) -> dict[str, Any]:
    """The inputs with the hashes that are now in their places."""
    now = dict(inputs)
    for name, place in places.items():
        if isinstance(place, Mapping):
            now[name] = _looked_up(inputs[name], place, folder, hash_of)
        else:
            now[name] = hash_of(os.path.normpath(os.path.join(folder, place)))
    return now


def _relative(folder: str, places: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _relative(folder, place) if isinstance(place, Mapping) else os.path.relpath(place, folder)
        for name, place in places.items()
    }


def _folder(artefact: str) -> str:
    return os.path.dirname(os.path.abspath(lineage_path(artefact)))


def _write(artefact: str, lineage: Lineage) -> None:
    os.makedirs(_folder(artefact), exist_ok=True)
    write_atomically(lineage_path(artefact), dump_signed(lineage.model_dump()))
