"""Folders of trained models: loaded, and heard with."""

import hashlib
import io
import json

import numpy as np
import tensorflow as tf

from tests import tiny
from tests.fuzz.core import Case, Door, Inconsistent, Outcome, digest, one_of
from tests.fuzz.damage import damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, damage_npz, sign
from tf_rnnt_kd.models import saving
from tf_rnnt_kd.models.language_model import LanguageModel

_KINDS = ("streaming", "cascade", "language")


class Models(Door):
    """Small networks: a transducer that streams, one of two passes, and a language model."""

    name, cases = "models", 360

    def build(self):
        tokenizer = tiny.tokenizer(self.folder.parent / "tokenizer")
        size = tokenizer.vocabulary_size
        made = (
            tiny.transducer(size, causal=True),
            tiny.transducer(size, causal=True, second_pass_blocks=1),
            LanguageModel(size, width=8),
        )
        for kind, model in zip(_KINDS, made, strict=True):
            saving.save_model(model, tokenizer, str(self.folder / kind))

    def open(self):
        return {kind: self.enter((kind, self.folder / kind)).found for kind in _KINDS}

    def case(self, rng, number):
        kind = one_of(rng, _KINDS)
        folder = self.copied(kind)
        ways = (self._bytes, self._files, self._description, self._description, self._weights, self._signed_weights)
        what, forged = ways[number % len(ways)](rng, folder)
        return Case(f"{kind}: {what}", (kind, folder), forged)

    def enter(self, given):
        kind, folder = given
        if kind == "language":
            model, tokenizer, _ = saving.load_language_model(str(folder))
        else:
            model, tokenizer = saving.load_model(str(folder), second_pass=kind == "cascade")
        if not all(np.isfinite(weight).all() for weight in model.weights):
            raise Inconsistent("a weight is not finite")
        return Outcome(kind, (tokenizer.hash, json.dumps(model.get_config()), digest(*_use(model))))

    def fits(self, outcome, reference):
        return outcome.found == reference[outcome.name]

    def _bytes(self, rng, folder):
        return damage_file(rng, one_of(rng, files_in(folder))), False

    def _files(self, rng, folder):
        return misplace(rng, one_of(rng, files_in(folder)), files_in(folder)), False

    def _description(self, rng, folder):
        path = folder / "model.json"
        content = json.loads(path.read_bytes())
        if rng.integers(8):
            what, data = damage_json(rng, content, sign)
        else:
            what, data = damage_json_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"model.json signed again: {what}", True

    def _weights(self, rng, folder):
        path = folder / "weights.npz"
        what, data = damage_npz(rng, path.read_bytes())
        path.write_bytes(data)
        return f"weights.npz: {what}", False

    def _signed_weights(self, rng, folder):
        what, _ = self._weights(rng, folder)
        path = folder / "model.json"
        try:
            with np.load(io.BytesIO((folder / "weights.npz").read_bytes())) as archive:
                weights = [archive[name] for name in archive.files]
            fitting = saving.hash_weights(weights)
        except Exception:  # whatever NumPy says: then nothing fits
            fitting = hashlib.sha256().hexdigest()
        path.write_bytes(sign({**json.loads(path.read_bytes()), "weights_hash": fitting}))
        return f"signed again: {what}", True


def _use(model):
    labels = tf.constant([[1, 2, 3]])
    if isinstance(model, LanguageModel):
        return [model(labels)]
    features = tf.constant(np.random.default_rng(0).standard_normal([1, 80, 80]), tf.float32)
    encoded, num_frames = model.encode(features, tf.constant([80]))
    return encoded, num_frames, model.join(encoded[:, :4], model.predict_labels(labels))
