"""Evaluations on disk with known errors, for tests of what is read from them."""

import numpy as np

from tf_rnnt_kd.evaluation.results import Transcription, write_results

SAID = "A B C D"


def transcribed(name, error_rate, *, num_utterances=60, speakers=20, seed=0, audio="heard"):
    """Utterances of which each word is wrong with this probability; speakers in turn, 0 for unknown ones."""
    wrong = np.random.default_rng(seed).random([num_utterances, 4]) < error_rate
    texts = [" ".join("X" if flag else word for word, flag in zip("ABCD", row, strict=True)) for row in wrong]
    return [
        Transcription(f"{name}-{i}", SAID, text, 0.0, f"voice-{i % speakers}" if speakers else "", audio)
        for i, text in enumerate(texts)
    ]


def write(folder, error_rate, *, sets=("clean", "noisy"), about=None, normaliser="none", **options):
    """Writes `results.json` of such test sets into a folder and returns its path as text."""
    found = {name: transcribed(name, error_rate, **options) for name in sets}
    write_results(str(folder / "results.json"), found, about, normaliser)
    return str(folder)
