"""A small transducer that says something about noise, and audio for it."""

import types

import keras
import numpy as np

from tf_rnnt_kd.models.conformer import ConformerEncoder
from tf_rnnt_kd.models.transducer import Transducer

PIECES = ["", " ", "A", "B", " ONE", " TWO", "É", "'S"]


def tokenizer():
    return types.SimpleNamespace(pieces=PIECES, hash="a-tokenizer", vocabulary_size=len(PIECES))


def transducer(causal, **options):
    keras.utils.set_random_seed(1)
    encoder = ConformerEncoder(16, 1, 2, 5, causal=causal, left_context=6 if causal else None, **options)
    model = Transducer(len(PIECES), encoder, prediction_width=16, joint_width=16)
    model.joint.kernel.assign(6 * model.joint.kernel.value)
    model.joint.bias.assign([2.0, *[0.0] * (len(PIECES) - 1)])
    return model


def noise(seconds, seed=0):
    """[S] float32: noise whose loudness and colour change ten times a second."""
    generator = np.random.default_rng(seed)
    size = int(16_000 * seconds)
    loudness = np.repeat(generator.choice([0.001, 0.03, 0.3], size // 1600 + 1), 1600)[:size]
    white = generator.standard_normal(size + 1)
    colour = np.repeat(generator.uniform(-1, 1, size // 1600 + 1), 1600)[:size]
    return (loudness * (white[1:] + colour * white[:-1])).astype(np.float32)


def random_cuts(num_samples, seed):
    """Where to cut: chunks of all sizes, some of 0 samples and many of 1."""
    generator = np.random.default_rng(seed)
    cuts = generator.integers(0, num_samples + 1, 12)
    single = generator.integers(0, num_samples + 1) + np.arange(20)
    cuts = np.concatenate([cuts, cuts[:3], single[single <= num_samples], [0, num_samples]])
    return np.sort(cuts).tolist()
