"""Folders of tokenizers of every kind: loaded, and written and read with."""

import hashlib
import json

from tests.fuzz.core import Case, Door, Outcome, digest, one_of
from tests.fuzz.damage import damage_bytes, damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, plain_json
from tests.fuzz.texts import damage_text
from tf_rnnt_kd.text.tokenizer import KINDS, load_tokenizer, train_tokenizer

_TEXTS = ["ONE TWO THREE FOUR", "FIVE SIX SEVEN EIGHT", "NINE ZERO OH ONE", "TWO TOO TO FOR FORE", "É A B C"]


class Tokenizers(Door):
    """One of every kind."""

    name, cases = "tokenizers", 400

    def build(self):
        for kind in KINDS:
            size = None if kind == "characters" else 60 if kind == "wordpiece" else 26
            train_tokenizer(_TEXTS, str(self.folder / kind), kind=kind, vocabulary_size=size)

    def open(self):
        return {kind: self.enter((kind, self.folder / kind)).found for kind in KINDS}

    def case(self, rng, number):
        kind = one_of(rng, KINDS)
        folder = self.copied(kind)
        ways = (self._bytes, self._files, self._description, self._model)
        what, forged = ways[number % len(ways)](rng, folder, kind)
        return Case(f"{kind}: {what}", (kind, folder), forged)

    def enter(self, given):
        kind, folder = given
        tokenizer = load_tokenizer(str(folder))
        ids = [tokenizer.encode(text) for text in _TEXTS]
        read = [tokenizer.decode(labels) for labels in ids]
        return Outcome(kind, (tokenizer.kind, tokenizer.hash, digest(*map(str, tokenizer.pieces)), ids, read))

    def fits(self, outcome, reference):
        return outcome.found == reference[outcome.name]

    def _bytes(self, rng, folder, kind):
        return damage_file(rng, one_of(rng, files_in(folder))), False

    def _files(self, rng, folder, kind):
        return misplace(rng, one_of(rng, files_in(folder)), files_in(folder)), False

    def _description(self, rng, folder, kind):
        path = folder / "tokenizer.json"
        if rng.integers(4):
            what, data = damage_json(rng, json.loads(path.read_bytes()), plain_json)
        else:
            what, data = damage_json_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"tokenizer.json: {what}", True

    def _model(self, rng, folder, kind):
        """Another model, with the hash that fits it."""
        path = next(path for path in files_in(folder) if path.suffix != ".json")
        what, data, *_ = (damage_text if path.suffix == ".txt" else damage_bytes)(rng, path.read_bytes())
        path.write_bytes(data)
        about = json.loads((folder / "tokenizer.json").read_bytes())
        about["sha256"] = hashlib.sha256(data + kind.encode()).hexdigest()
        (folder / "tokenizer.json").write_bytes(plain_json(about))
        return f"{path.name} signed again: {what}", True
