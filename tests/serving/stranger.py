"""A program that knows only TensorFlow: streams audio through an export. Usage: stranger.py EXPORT FOLDER."""

import itertools
import json
import pathlib
import sys


class _Blocker:
    """Refuses the packages that an export must not need."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tf_rnnt_kd", "tensorflow_text", "sentencepiece"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, _Blocker())

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def stream(signatures, samples, cuts):
    state, text = signatures["initial_state"](), b""
    for start, end in itertools.pairwise(cuts):
        outputs = dict(signatures["step"](samples=tf.constant(samples[None, start:end]), **state))
        text += outputs.pop("text").numpy()[0]
        state = {name: outputs[name] for name in state}
    outputs = signatures["flush"](**state)
    return (text + outputs["text"].numpy()[0]).decode().strip()


def main(export, folder):
    signatures = tf.saved_model.load(export).signatures
    cuts = json.loads((folder / "cuts.json").read_text())
    texts = {}
    for name, samples in np.load(folder / "audio.npz").items():
        whole = signatures["transcribe"](samples=tf.constant(samples[None]), num_samples=tf.constant([len(samples)]))
        texts[name] = {"whole": whole["text"].numpy()[0].decode(), "stream": stream(signatures, samples, cuts[name])}
    (folder / "texts.json").write_text(json.dumps(texts))


main(sys.argv[1], pathlib.Path(sys.argv[2]))
