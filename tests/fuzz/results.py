"""Figures and hypotheses of an evaluation: read, and compared with those of another system."""

import json

from tests.fuzz.core import Case, Door, one_of
from tests.fuzz.damage import damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, plain_json, sign
from tests.fuzz.texts import damage_text
from tf_rnnt_kd.evaluation.report import format_differences, format_table
from tf_rnnt_kd.evaluation.results import Transcription, write_results
from tf_rnnt_kd.evaluation.systems import read_systems

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
        what, forged = damage(rng, folder / "first")
        return Case(what, folder, forged)

    def enter(self, given):
        systems = read_systems([str(given / name) for name in _HEARD])
        found = [
            (run.results, [scored.transcriptions for scored in run.scored.values()]) for s in systems for run in s.runs
        ]
        return repr(found), format_table(systems), format_differences(systems)

    def _figures(self, rng, folder):
        path = folder / "results.json"
        signed = bool(rng.integers(3))
        if rng.integers(4):
            what, data = damage_json(rng, json.loads(path.read_bytes()), sign if signed else plain_json)
        else:
            what, data = damage_json_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"results.json{' signed again' if signed else ''}: {what}", signed

    def _text(self, rng, folder):
        path = one_of(rng, sorted(folder.glob("*.tsv")))
        what, data, _ = damage_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.name}: {what}", False

    def _bytes(self, rng, folder):
        return damage_file(rng, one_of(rng, files_in(folder))), False

    def _files(self, rng, folder):
        return misplace(rng, one_of(rng, files_in(folder)), files_in(folder)), False
