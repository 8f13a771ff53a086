"""Figures and hypotheses of an evaluation: read, and compared with those of another system."""

import json

from tests.fuzz.core import Case, Door, one_of
from tests.fuzz.damage import damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, plain_json
from tests.fuzz.texts import damage_text
from tf_rnnt_kd.evaluation.report import common_sets, compare, read_systems
from tf_rnnt_kd.evaluation.results import Transcription, write_results

_SAID = ["ONE TWO THREE", "FOUR FIVE", "SIX", "SEVEN EIGHT NINE ZERO"]
_HEARD = {"first": ["ONE TWO THREE", "FOUR FIVE FIVE", "", "SEVEN ATE NINE"], "second": ["ONE TOO", "FOUR", "SIX", "X"]}


class Results(Door):
    """Two systems on two test sets; the first is damaged."""

    name, cases = "results", 500

    def build(self):
        for name, heard in _HEARD.items():
            said = [Transcription(f"u{i}", *pair) for i, pair in enumerate(zip(_SAID, heard, strict=True))]
            write_results(
                str(self.folder / name / "results.json"), {"clean": said, "noisy": said[1:]}, {"model": "a" * 64}
            )

    def case(self, rng, number):
        folder = self.copied()
        damage = (self._figures, self._text, self._bytes, self._files)[number % 4]
        what, excused = damage(rng, folder / "first")
        return Case(what, folder, excused=excused)

    def enter(self, given):
        systems = read_systems([str(given / name) for name in _HEARD])
        names = common_sets(systems)
        found = [(run.results, [scored.ids for scored in run.scored.values()]) for s in systems for run in s.runs]
        return repr([found, names, [compare(*systems, name) for name in names]])

    def _figures(self, rng, folder):
        path = folder / "results.json"
        if rng.integers(4):
            what, data = damage_json(rng, json.loads(path.read_bytes()), plain_json)
        else:
            what, data = damage_json_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"results.json: {what}", False

    def _text(self, rng, folder):
        path = one_of(rng, sorted(folder.glob("*.tsv")))
        what, data, _ = damage_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.name}: {what}", False

    def _bytes(self, rng, folder):
        return damage_file(rng, one_of(rng, files_in(folder))), False

    def _files(self, rng, folder):
        return misplace(rng, one_of(rng, files_in(folder)), files_in(folder)), False
