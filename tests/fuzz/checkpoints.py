"""Checkpoints of a training: restored, the newest and the best."""

import json

import keras
import numpy as np

from tests.fuzz.core import Case, Door, digest, one_of
from tests.fuzz.damage import damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, sign
from tf_rnnt_kd.training.checkpoints import TrainingCheckpoint

_WERS = {10: 0.3, 20: 0.4}  # the older one is the better one


class Checkpoints(Door):
    """Of two steps; where the newer one is damaged, and that is said, the older one is right."""

    name, cases = "checkpoints", 500

    def build(self):
        self._make_model()
        with self._opened(self.folder) as checkpoint:
            for step, wer in _WERS.items():
                self._fill(step)
                checkpoint.save(step, 1.5 * step, wer)

    def open(self):
        self._make_model()
        self._right = {}
        for step in _WERS:
            self._fill(step)
            self._right[step] = (step, 1.5 * step, self._state())
        return self.enter(self.copied())

    def case(self, rng, number):
        folder = self.copied()
        best = not rng.integers(4)
        what, forged = (self._bytes, self._files, self._header, self._header, self._exchange)[number % 5](rng, folder)
        allowed = tuple(self._right.values())
        if not any(path.suffix == ".json" for path in folder.iterdir()):
            allowed += ((0, 0.0, digest(*self._zeros())),)  # a checkpoint without header does not exist
        return Case(f"{what}{', the best' if best else ''}", (folder, best), forged, allowed=allowed)

    def enter(self, given):
        folder, best = given if isinstance(given, tuple) else (given, False)
        for variable, zeros in zip(self._variables, self._zeros(), strict=True):
            variable.assign(zeros)
        with self._opened(folder) as checkpoint:
            step = checkpoint.restore_best()[1] if best else checkpoint.restore()
            return step, checkpoint.seconds, self._state()

    def _bytes(self, rng, folder):
        return damage_file(rng, one_of(rng, files_in(folder))), False

    def _files(self, rng, folder):
        files = files_in(folder)
        path = one_of(rng, files)
        alike = [other for other in files if other != path and other.suffix == path.suffix]
        return misplace(rng, path, alike), False

    def _header(self, rng, folder):
        path = one_of(rng, sorted(folder.glob("*.json")))
        content = json.loads(path.read_bytes())
        if rng.integers(8):
            what, data = damage_json(rng, content, sign)
        else:
            what, data = damage_json_text(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.name} signed again: {what}", True

    def _exchange(self, rng, folder):
        """Both files of a step under the name of another one."""
        old, new = ((10, 30), (20, 5), (10, 20), (20, 10))[rng.integers(4)]
        for ending in ("json", "data"):
            (folder / f"ckpt-{old}.{ending}").replace(folder / f"ckpt-{new}.{ending}")
        return f"step {old} is called {new}", False

    def _make_model(self):
        keras.backend.clear_session()  # names are numbered over the whole process
        self._model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4), keras.layers.Dropout(0.1)])
        self._optimizer = keras.optimizers.AdamW(1e-3)
        self._optimizer.build(self._model.trainable_variables)
        self._variables = [*self._model.variables, *self._optimizer.variables]

    def _opened(self, folder):
        return TrainingCheckpoint(str(folder), self._model, self._optimizer, keep=2)

    def _fill(self, step):
        rng = np.random.default_rng(step)
        for variable in self._variables:
            variable.assign((1_000 * rng.random(variable.shape)).astype(variable.dtype))

    def _zeros(self):
        return [np.zeros(variable.shape, variable.dtype) for variable in self._variables]

    def _state(self):
        return digest(*[variable.numpy() for variable in self._variables])
