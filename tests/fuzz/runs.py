"""Folders of runs: what a start compares, what `explain` tells, and the small files beside the large ones."""

import json

from tests import tiny, toy
from tests.fuzz.core import Case, Door, one_of
from tests.fuzz.damage import damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, sign
from tests.fuzz.texts import damage_text
from tf_rnnt_kd.config import load_plan
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation import tuning
from tf_rnnt_kd.evaluation.results import Transcription, write_results
from tf_rnnt_kd.files import write_text
from tf_rnnt_kd.lineage import begin, finish
from tf_rnnt_kd.nst import configuration, run
from tf_rnnt_kd.nst.artefacts import hash_of
from tf_rnnt_kd.nst.explanation import explain
from tf_rnnt_kd.nst.skipping import Skipped

_TOLD = ("no longer fits", "without lineage", "made from itself")
_TRIALS = {"trials": [[0.1, 0.0, 0.0, 12.5], [0.2, 0.0, 0.5, 11.0]]}


class Runs(Door):
    """A tokenizer, a record set made with it, and an evaluation on that, each with its lineage."""

    name, cases = "runs", 400

    def build(self):
        _, self._config = load_plan("configs/quickstart.gin")
        folder = self.folder
        tokenizer = tiny.tokenizer(folder / "records" / "tokenizer")
        self._begin(folder / "records" / "tokenizer", "tokenizer", {"kind": "characters"}, {})
        tiny.write_set(folder / "records" / "set", tokenizer, toy.tone_utterances(num_utterances=3, seed=0))
        self._begin(folder / "records" / "set", "record set", {}, {"tokenizer": folder / "records" / "tokenizer"})
        said = [Transcription(f"u{i}", "ONE TWO", text) for i, text in enumerate(["ONE", "TWO", "ONE TWO"])]
        write_results(str(folder / "results.json"), {"clean": said})
        self._begin(folder / "results.json", "evaluation", {}, {"records": {"set": folder / "records" / "set"}})
        configuration.begin(str(folder), self._config)
        (folder / "trials.json").write_bytes(sign(_TRIALS))
        (folder / "training.json").write_bytes(sign({"steps": 100, "seconds": 12.5}))
        write_text(str(folder / "records" / "set" / "skipped.tsv"), "file\treason\na.wav\tit is cut off\n")

    def open(self):
        _, self._config = load_plan("configs/quickstart.gin")
        return super().open()

    def case(self, rng, number):
        folder = self.copied()
        kinds = (self._lineage, self._lineage, self._bytes, self._files, self._text, self._figures)
        what, forged, excused = kinds[number % len(kinds)](rng, folder)
        return Case(what, folder, forged, excused)

    def enter(self, given):
        home = configuration.find_home(str(given / "records" / "set"))
        changes = configuration.check(str(given), self._config)
        told = explain(str(given))
        wrong = [line for line in told.split("\n") if any(words in line for words in _TOLD)]
        if wrong:
            raise UserError(wrong[-1])
        skipped = Skipped(str(given / "records"), ["set"], 3).describe("set")
        small = tuning._read_trials(str(given / "trials.json")), run._read_cost(str(given))
        return repr((home, changes, told, skipped, small)).replace(str(given), "RUN")

    def _begin(self, artefact, kind, settings, places):
        places = _texts(places)
        inputs = {**settings, **_hashes(places)}
        begin(str(artefact), kind, inputs, places)
        finish(str(artefact), hash_of(str(artefact)))

    def _lineage(self, rng, folder):
        path = one_of(rng, sorted(folder.rglob("*lineage.json")))
        if rng.integers(6):
            what, data = damage_json(rng, json.loads(path.read_bytes()), sign)
        else:
            what, data = damage_json_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.relative_to(folder)} signed again: {what}", True, False

    def _bytes(self, rng, folder):
        path = one_of(rng, files_in(folder))
        return damage_file(rng, path), False, path.suffix == ".tsv"

    def _files(self, rng, folder):
        path = one_of(rng, files_in(folder))
        what = misplace(rng, path, files_in(path.parent))
        # What is not there is made anew or has no lineage, and a start says so; nobody can tell that it was there.
        return what, False, path.suffix == ".tsv" or not path.exists()

    def _text(self, rng, folder):
        path = folder / one_of(rng, ["config.gin", "records/set/skipped.tsv"])
        what, data, excused = damage_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.name}: {what}", False, excused or path.suffix == ".tsv"

    def _figures(self, rng, folder):
        path = folder / one_of(rng, ["trials.json", "training.json"])
        content = json.loads(path.read_bytes())
        what, data = damage_json(rng, content, sign)
        path.write_bytes(data)
        return f"{path.name} signed again: {what}", True, False


def _texts(places):
    return {name: _texts(place) if isinstance(place, dict) else str(place) for name, place in places.items()}


def _hashes(places):
    return {name: _hashes(place) if isinstance(place, dict) else hash_of(place) for name, place in places.items()}
