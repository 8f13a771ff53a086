"""Folders of trained models: loaded, and heard with."""

import hashlib
import io
import json

import numpy as np
import tensorflow as tf

from tests import tiny
from tests.fuzz.core import Case, Door, Inconsistent, digest, one_of
from tests.fuzz.damage import damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, damage_npz, sign
from tf_rnnt_kd.models import saving


class Models(Door):
    """A small transducer that streams."""

    name, cases = "models", 320

    def build(self):
        tokenizer = tiny.tokenizer(self.folder.parent / "tokenizer")
        saving.save_model(tiny.transducer(tokenizer.vocabulary_size, causal=True), tokenizer, str(self.folder))

    def case(self, rng, number):
        folder = self.copied()
        kinds = (self._bytes, self._files, self._description, self._description, self._weights, self._signed_weights)
        what, forged = kinds[number % len(kinds)](rng, folder)
        return Case(what, folder, forged)

    def enter(self, given):
        model, tokenizer = saving.load_model(str(given))
        if not all(np.isfinite(weight).all() for weight in model.weights):
            raise Inconsistent("a weight is not finite")
        features = tf.constant(np.random.default_rng(0).standard_normal([1, 80, 80]), tf.float32)
        encoded, num_frames = model.encode(features, tf.constant([80]))
        predicted = model.predict_labels(tf.constant([[1, 2, 3]]))
        logits = model.join(encoded[:, :4], predicted).numpy()
        return tokenizer.hash, json.dumps(model.get_config()), digest(encoded, num_frames, logits)

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
