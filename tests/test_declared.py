"""Every JSON that this program reads back, with each of its fields missing or of another kind, and signed again.

The fields are listed from real files, and the declared types are asked whether any of theirs is not among them: a new
field cannot be forgotten.
"""

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pytest

from tests import tiny
from tests.data.record_sets import to_records, write, write_factored
from tests.training.test_checkpoints import Run
from tf_rnnt_kd import files, lineage
from tf_rnnt_kd.data import manifest
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation import tuning
from tf_rnnt_kd.evaluation.results import SetResult, Transcription, _Document, read_evaluation, write_results
from tf_rnnt_kd.features import stored
from tf_rnnt_kd.models import description
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.saving import load_language_model, load_model, save_model
from tf_rnnt_kd.nst import run
from tf_rnnt_kd.serving import export_folder
from tf_rnnt_kd.serving.export_folder import read_metadata, write_export
from tf_rnnt_kd.text import tokenizer
from tf_rnnt_kd.training import checkpoint_files

MISSING = object()
DEEP = "DEEP"
WRONG = {
    "missing": MISSING,
    "null": None,
    "true": True,
    "text": "a text",
    "list": [],
    "object": {},
    "negative": -1,
    "fraction": 1.5,
    "enormous": 2**70,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "nested": DEEP,
}


class Artefact(NamedTuple):
    """A file, who reads it, and which of the wrong values its declared types allow.

    Attributes:
      path: of the file, in a folder of its own.
      read: reads it; what it gives is not looked at.
      kinds: the declared types of its objects.
      signed: whether it holds the sha256 of the rest of it.
      allowed: "FIELD: WRONG" that is another document, and no damage; None where that is not asked.
    """

    path: Any
    read: Callable[[], Any]
    kinds: tuple[type, ...]
    signed: bool
    allowed: frozenset[str] | None = frozenset()


def records(folder):
    def read():
        found = open_records(str(folder))
        return list(found.read()), found.kernel, found.ids

    write_factored(folder)
    allowed = {"source: text", "source: object", "tokenizer_hash: null", "targets.teacher_hash: text"}
    kinds = manifest.Manifest, manifest.ShardEntry, manifest.Targets
    return Artefact(folder / "manifest.json", read, kinds, True, frozenset(allowed))


def features(folder):
    def spoken(part):
        for record in to_records(part):
            yield dataclasses.replace(record, samples=np.tile(record.samples, 20))

    write(folder, make=spoken, features=stored.describe("uint8"))
    kinds = manifest.Manifest, manifest.ShardEntry, manifest.Features
    allowed = frozenset({"source: text", "source: object", "tokenizer_hash: null"})
    return Artefact(folder / "manifest.json", lambda: open_records(str(folder)), kinds, True, allowed)


def plan(folder):
    write(folder)
    return Artefact(folder / "plan.json", lambda: write(folder), (manifest.Plan,), False)


def hear(folder):
    model, _ = load_model(str(folder))
    return model.encode(np.zeros([1, 16, 80], np.float32), np.array([16]))


def transducer(folder, causal=False):
    model = tiny.transducer(causal=causal, training_chunks=(1, 2) if causal else (), second_pass_blocks=int(causal))
    save_model(model, tiny.tokenizer(folder.parent / "tokenizer"), str(folder))
    allowed = {"architecture.encoder.causal: true"} if causal else {"architecture.encoder.left_context: null"}
    if causal:
        allowed |= {f"architecture.encoder.training_chunks{end}" for end in (": list", ".0: missing", ".1: missing")}
    allowed |= {f"architecture.{name}: true" for name in ("uses_second_pass", "encoder.rematerialise")}
    kinds = [description.Description, description.Architecture, description.EncoderArchitecture]
    kinds += [description.Policy, description.PolicyName]
    return Artefact(folder / "model.json", lambda: hear(folder), tuple(kinds), True, frozenset(allowed))


def language_model(folder):
    model = LanguageModel(6, width=4)
    save_model(model, tiny.tokenizer(folder.parent / "tokenizer"), str(folder))
    kinds = description.LanguageDescription, description.LanguageArchitecture
    return Artefact(folder / "model.json", lambda: load_language_model(str(folder)), kinds, True)


def pieces(folder):
    tiny.tokenizer(folder)
    read = lambda: tokenizer.load_tokenizer(str(folder))  # noqa: E731
    return Artefact(folder / "tokenizer.json", read, (tokenizer.Description,), False)


def checkpoint(folder):
    run = Run(folder)
    run.checkpoint.save(3, 1.5, 20.0)
    run.checkpoint.wait()
    return Artefact(
        folder / "ckpt-3.json",
        run.checkpoint.restore,
        (checkpoint_files.Header,),
        True,
        frozenset({"wer: null", "wer: fraction", "seconds: fraction"}),
    )


def trials(folder):
    folder.mkdir()
    path = folder / "trials.json"
    path.write_bytes(files.dump_signed({"trials": [[0.1, 0.2, 0.0, 12.5]]}))
    ends = {"0.0: fraction", "0.0: negative", "0.3: fraction", "0: missing"}
    allowed = frozenset({"trials: list", *(f"trials.{end}" for end in ends)})
    return Artefact(path, lambda: tuning._read_trials(str(path)), (tuning.Trials,), True, allowed)


def results(folder):
    path = folder / "results.json"
    heard = [Transcription(f"u{i}", "ONE TWO", "ONE", speaker=f"s{i % 2}") for i in range(4)]
    write_results(str(path), {"clean": heard}, {"model": "a" * 64, "records": {"clean": "b" * 64}})
    return Artefact(path, lambda: read_evaluation(str(path)), (_Document, SetResult), True, None)


def cost(folder):
    folder.mkdir()
    path = folder / "training.json"
    path.write_bytes(files.dump_signed({"steps": 9, "seconds": 1.5}))
    return Artefact(path, lambda: run._read_cost(str(folder)), (run.Cost,), True, frozenset({"seconds: fraction"}))


def export(folder):
    model = tiny.transducer()
    pieces = tiny.tokenizer(folder.parent / "tokenizer")
    write_export(str(folder), os.makedirs, model, pieces, model_hash="a" * 64, kind="saved_model", beam=1)
    path = folder / export_folder.METADATA
    allowed = {"second_pass: true", "streaming: true", "model_hash: text", "tokenizer_hash: text"}
    allowed |= {f"pieces.{i}: {name}" for i in (0, 5) for name in ("missing", "text")}
    return Artefact(
        path, lambda: read_metadata(str(folder)), (export_folder.AboutSavedModel,), True, frozenset(allowed)
    )


def made_from(folder):
    folder.mkdir()
    lineage.begin(str(folder), "label set", {"codec": "factored", "teacher": "a" * 64}, {"teacher": str(folder.parent)})
    lineage.finish(str(folder), "b" * 64)
    path = folder / lineage.FILE
    return Artefact(path, lambda: lineage.examine(str(folder), lambda _: None), (lineage.Lineage,), True, None)


MAKERS = {
    "records": records,
    "features": features,
    "plan": plan,
    "transducer": transducer,
    "causal": lambda folder: transducer(folder, causal=True),
    "language_model": language_model,
    "pieces": pieces,
    "checkpoint": checkpoint,
    "trials": trials,
    "results": results,
    "cost": cost,
    "export": export,
    "made_from": made_from,
}


@pytest.fixture(scope="module", params=MAKERS)
def artefact(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp("declared") / "artefact")


def places(value, path=()):
    """Of every field: the way to it. Of a list its ends stand for all."""
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = {0, len(value) - 1} if value else ()
    else:
        keys = ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def changed(document, place, value):
    document = copy.deepcopy(document)
    *way, last = place
    parent = document
    for key in way:
        parent = parent[key]
    if value is MISSING:
        del parent[last]
    else:
        parent[last] = value
    return document


def dump(document, signed):
    """As the program writes it, also what it would refuse to write."""

    def text(content):
        plain = json.dumps(content, indent=1, sort_keys=True) + "\n"
        return plain.replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000)

    if not signed:
        return text(document)
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return text({**rest, "sha256": hashlib.sha256(text(rest).encode()).hexdigest()})


def test_every_wrong_field_is_one_line(artefact):
    original = artefact.path.read_bytes()
    document = json.loads(original)
    artefact.read()
    accepted = set()
    for place in places(document):
        if place == ("sha256",) and artefact.signed:
            continue
        for name, value in WRONG.items():
            artefact.path.write_text(dump(changed(document, place, value), artefact.signed))
            try:
                artefact.read()
            except UserError as error:
                assert "\n" not in error.message and len(error.message) < 1_000
            else:
                accepted.add(f"{'.'.join(map(str, place))}: {name}")
    artefact.path.write_bytes(original)
    unchanged = {
        f"{'.'.join(map(str, place))}: {name}"
        for place in places(document)
        for name, value in WRONG.items()
        if is_same(at(document, place), value)
    }
    assert artefact.allowed is None or accepted - unchanged == artefact.allowed - unchanged
    artefact.read()


def at(document, place):
    for key in place:
        document = document[key]
    return document


def is_same(one, other):
    return type(one) is type(other) and one == other


def test_no_declared_field_is_forgotten(artefact):
    found = {place[-1] for place in places(json.loads(artefact.path.read_bytes()))}
    for kind in artefact.kinds:
        optional = getattr(kind, "__optional_keys__", frozenset())
        assert set(getattr(kind, "model_fields", None) or get_type_hints(kind)) - optional <= found


def test_what_is_no_object_at_all_is_one_line(artefact):
    original = artefact.path.read_bytes()
    for content in ("", "null", "[]", "7", '"text"', "[" * 100_000, '{"a":' * 100_000, "\x00"):
        artefact.path.write_text(content)
        with pytest.raises(UserError, match="damaged|can be read"):
            artefact.read()
    artefact.path.write_bytes(original)


@pytest.mark.parametrize("name", ["transducer", "causal", "language_model"])
def test_other_numbers_give_another_model_or_one_line(tmp_path_factory, name):
    """Widths that do not fit the weights, heads that do not divide the width, and models larger than any memory."""
    artefact = MAKERS[name](tmp_path_factory.mktemp("numbers") / "artefact")
    document = json.loads(artefact.path.read_bytes())
    refused = 0
    for place in places(document["architecture"]):
        value = at(document["architecture"], place)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        for other in (0, value + 1, 3 * value, 2**20):
            altered = changed(document["architecture"], place, other)
            artefact.path.write_text(dump({**document, "architecture": altered}, signed=True))
            try:
                artefact.read()
            except UserError as error:
                assert "\n" not in error.message
                refused += 1
    assert refused > 10
