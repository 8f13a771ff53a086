"""The artefacts of a run: where they lie, their hashes, and which of them no longer fit what they were made from."""

import os
import shutil
from collections.abc import Iterable
from typing import Any, NamedTuple

from tf_rnnt_kd.data.records import records_hash
from tf_rnnt_kd.evaluation.results import RESULTS
from tf_rnnt_kd.files import sha256_of_file
from tf_rnnt_kd.labelling.records import label_inputs
from tf_rnnt_kd.lineage import examine, lineage_path
from tf_rnnt_kd.models.saving import find_hash
from tf_rnnt_kd.nst.jobs import Job
from tf_rnnt_kd.nst.language import decoding_folder
from tf_rnnt_kd.nst.plan import LabelSet, Plan
from tf_rnnt_kd.nst.preparation import Prepared
from tf_rnnt_kd.serving.export_folder import METADATA
from tf_rnnt_kd.text.tokenizer import load_tokenizer

STALE = ".stale-"  # in the name of a folder that was set aside
_HASHED_BY = (METADATA, RESULTS, "ngrams.arpa")  # the first of them that a folder has


class Artefact(NamedTuple):
    """A folder or file that a run makes.

    Attributes:
      path: of it.
      proof: path of the file whose presence says that it is finished; of something on the way, of what it led to.
    """

    path: str
    proof: str

    @property
    def is_finished(self) -> bool:
        """Whether it is whole; it may no longer fit."""
        return os.path.exists(self.proof)

    @property
    def is_begun(self) -> bool:
        """Whether anything is there."""
        is_whole = self.proof.startswith(self.path) and self.is_finished
        return is_whole or os.path.exists(lineage_path(self.path))


def generation_folder(work_dir: str, seed: int, name: str) -> str:
    """Where a generation lives."""
    return os.path.join(work_dir, f"seed-{seed}", name)


def label_sets_wanted_from(plan: Plan, teacher: str) -> list[LabelSet]:
    """What the students of a generation need from it, each set once."""
    students = [g for g in plan.generations if g.teacher == teacher]
    return list(dict.fromkeys(s for student in students for s in plan.label_sets(student)))


def model_of(folder: str) -> Artefact:
    """The trained model of a generation's folder."""
    return Artefact(folder, os.path.join(folder, "model.json"))


def labels_of(folder: str, label_set: LabelSet) -> Artefact:
    """A label set of the teacher in `folder`."""
    path = os.path.join(folder, "labels", label_set.name)
    return Artefact(path, os.path.join(path, "manifest.json"))


def results_of(folder: str) -> Artefact:
    """The figures in a folder."""
    path = os.path.join(folder, RESULTS)
    return Artefact(path, path)


def parts_of_decoding(folder: str) -> list[Artefact]:
    """The figures of a decoding, and the trials that chose its weights: what outdates these outdates both."""
    results = results_of(folder)
    return [Artefact(os.path.join(folder, "trials.json"), results.proof), results]


def export_of(folder: str) -> Artefact:
    """The SavedModel of a generation's folder."""
    path = os.path.join(folder, "savedmodel")
    return Artefact(path, path)


def list_artefacts(plan: Plan, job: Job, work_dir: str) -> list[Artefact]:
    """All that a generation leaves, in the order in which it is made."""
    generation = job.generation
    folder = generation_folder(work_dir, job.seed, generation.name)
    return [
        model_of(folder),
        *(labels_of(folder, label_set) for label_set in label_sets_wanted_from(plan, generation.name)),
        *(results_of(os.path.join(folder, row.folder)) for row in generation.rows),
        *(part for decoding in generation.decodings for part in parts_of_decoding(decoding_folder(folder, decoding))),
        *([export_of(folder)] if generation.export else []),
    ]


def find_stale(artefacts: Iterable[Artefact]) -> dict[str, list[str]]:
    """Those that are there, and no longer fit: path -> what changed."""
    changes = {artefact.path: examine(artefact.path, hash_of) for artefact in artefacts if artefact.is_begun}
    return {path: found for path, found in changes.items() if found}


def hash_of(path: str) -> str | None:
    """The hash by which an artefact is known to those that are made from it; None where there is nothing."""
    if os.path.isfile(path):
        return sha256_of_file(path)
    if os.path.exists(os.path.join(path, "tokenizer.json")):
        return load_tokenizer(path).hash
    found = find_hash(path) or records_hash(path)
    files = (os.path.join(path, name) for name in _HASHED_BY)
    return found or next((sha256_of_file(file) for file in files if os.path.exists(file)), None)


def model_inputs(plan: Plan, job: Job, work_dir: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a generation is trained on, and where that lies, as for `lineage.begin`.

    The development set counts where it chooses the weights.
    """
    generation, prepared = job.generation, Prepared(os.path.join(work_dir, "records"))
    chosen_on = [plan.development] if generation.training.handed_on == "best" else []
    sets = {label_set.name: label_set for label_set in plan.label_sets(generation)}
    labelled = {
        name: {
            "teacher": generation_folder(work_dir, job.seed, label_set.teacher),
            "records": prepared.path(label_set.corpus),
        }
        for name, label_set in sets.items()
    }
    places = {
        "tokenizer": prepared.path("tokenizer"),
        "labelled": {name: prepared.path(name) for name in generation.labelled},
        "development": {name: prepared.path(name) for name in chosen_on},
        "pseudo_labelled": labelled,
    }
    inputs = {
        "seed": job.seed,
        "tokenizer": hash_of(places["tokenizer"]),
        "labelled": {name: records_hash(path) for name, path in places["labelled"].items()},
        "development": {name: records_hash(path) for name, path in places["development"].items()},
        "normaliser": plan.normaliser if chosen_on else None,
        "pseudo_labelled": {
            name: label_inputs(
                at["teacher"],
                at["records"],
                codec=sets[name].codec,
                dtype=sets[name].dtype,
                features=sets[name].features,
            )
            for name, at in labelled.items()
        },
    }
    return inputs, places


def remove(path: str) -> None:
    """Removes an artefact and its lineage."""
    if os.path.isdir(path):
        shutil.rmtree(path)
        return
    for file in (path, lineage_path(path)):
        if os.path.exists(file):
            os.remove(file)


def remove_parent(path: str) -> None:
    """Removes the folder of an artefact."""
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def set_aside(folder: str, kept: str) -> str:
    """Moves all of a generation but the file `kept` into a folder beside it, whose path it returns.

    Its labels, which are large and can be made again, are removed.
    """
    shutil.rmtree(os.path.join(folder, "labels"), ignore_errors=True)
    number = 1
    while os.path.exists(aside := f"{folder}{STALE}{number}"):
        number += 1
    os.mkdir(aside)
    for name in os.listdir(folder):
        if name != kept:
            os.rename(os.path.join(folder, name), os.path.join(aside, name))
    return aside
