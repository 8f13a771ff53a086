"""A language that a tiny model learns in seconds: each letter is a tone, each word a short melody."""

import functools

import numpy as np

from tf_rnnt_kd.data.corpora import Utterance

WORDS = {"AB": "AB", "CD": "CD", "BAD": "BAD", "DAB": "DAB"}
_FREQUENCIES = {"A": 400.0, "B": 900.0, "C": 1_700.0, "D": 2_900.0}
_LETTER = 2_400  # samples, 150 ms
_PAUSE = 1_600


def tone_utterances(*, num_utterances: int, seed: int, noise: float = 0.01, words: tuple[int, int] = (1, 3)) -> list:
    """Utterances of the toy language, the same for the same arguments."""
    prefix = f"tone-{seed}"
    return [_utterance(f"{prefix}-{i:04d}", seed, i, noise, words) for i in range(num_utterances)]


def _utterance(name, seed, i, noise, words):
    rng = np.random.default_rng([seed, i])
    text = " ".join(rng.choice(list(WORDS), rng.integers(words[0], words[1] + 1)))
    return Utterance(name, f"speaker-{i % 3}", text, functools.partial(_sing, text, seed, i, noise))


def _sing(text, seed, i, noise):
    rng = np.random.default_rng([seed, i, 1])
    pieces = [np.zeros(_PAUSE)]
    for letter in text:
        if letter == " ":
            pieces.append(np.zeros(_PAUSE))
            continue
        phase = 2 * np.pi * _FREQUENCIES[letter] * rng.uniform(0.95, 1.05) * np.arange(_LETTER) / 16_000
        pieces.append(0.3 * np.sin(phase) * np.hanning(_LETTER))
    samples = np.concatenate([*pieces, np.zeros(_PAUSE)])
    samples = samples + noise * rng.standard_normal(len(samples))
    return np.clip(samples * 32767, -32768, 32767).astype(np.int16)
