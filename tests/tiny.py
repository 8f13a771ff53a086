"""The smallest networks, record sets and trainings that still have every part."""

import keras
import numpy as np

from tests.toy import tone_utterances
from tf_rnnt_kd.data.batching import Buckets
from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.models.conformer import ConformerEncoder
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.tokenizer import train_tokenizer
from tf_rnnt_kd.training.loop import Training
from tf_rnnt_kd.training.schedules import WarmupCosine

BUCKETS = Buckets((1.2, 2.0), batch_seconds=8.0)


def transducer(
    vocabulary_size=6,
    *,
    causal=False,
    width=16,
    num_blocks=1,
    dropout=0.1,
    joint_width=12,
    training_chunks=(),
    rematerialise=False,
    seed=0,
    **options,
):
    """A Conformer transducer of some ten thousand weights."""
    keras.utils.set_random_seed(seed)
    encoder = ConformerEncoder(
        width, num_blocks, 2, 3, causal, 4 if causal else None, dropout, 1, training_chunks, rematerialise
    )
    return Transducer(
        vocabulary_size, encoder, prediction_width=16, joint_width=joint_width, dropout=dropout, **options
    )


def talkative(vocabulary_size=6, *, seed=0, joint_width=12):
    """An untrained transducer whose hypotheses differ and fit: a wide kernel, and a bias towards blank."""
    model = transducer(vocabulary_size, seed=seed, joint_width=joint_width)
    model.joint.kernel.assign(3.0 * model.joint.kernel.value)
    bias = np.zeros([vocabulary_size], np.float32)
    bias[0] = 8.0
    model.joint.bias.assign(bias)
    return model


def tokenizer(folder):
    """Characters of the toy language, six with blank."""
    texts = [utterance.text for utterance in tone_utterances(num_utterances=20, seed=0)]
    return train_tokenizer(texts, str(folder), kind="characters", vocabulary_size=None)


def write_set(folder, tokenizer, utterances, *, records_per_shard=8):
    """Utterances of the toy language as a labelled record set."""

    def to_records(part):
        for utterance in part:
            labels = np.array(tokenizer.encode(utterance.text), np.int32)
            yield Record(utterance.id, utterance.speaker, utterance.text, utterance.load(), labels)

    manifest = {"tokenizer_hash": tokenizer.hash, "sample_rate": 16_000, "targets": None, "source": "toy"}
    return write_records(str(folder), utterances, to_records, manifest=manifest, records_per_shard=records_per_shard)


def training(steps, **changes):
    """Settings for a few steps over `BUCKETS`; unless `rate_steps` says so, the schedule does not depend on `steps`."""
    rate = WarmupCosine(changes.pop("peak", 2e-3), steps=changes.pop("rate_steps", 1_000), warmup=2)
    return Training(**{"steps": steps, "buckets": BUCKETS, "learning_rate": rate, **changes})
