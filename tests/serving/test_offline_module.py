"""Whole utterances: the best hypothesis, several, and what is said of audio that cannot be heard."""

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import networks
from tf_rnnt_kd.decoding.offline import recognize
from tf_rnnt_kd.serving.offline_module import OfflineModule


@pytest.fixture(scope="module")
def model():
    return networks.transducer(causal=False)


@pytest.fixture(scope="module")
def signatures(model):
    return OfflineModule(model, networks.PIECES, beam=3).signatures()


def _batch(*rows):
    samples = np.full([len(rows), max(map(len, rows))], np.nan, np.float32)
    for padded, row in zip(samples, rows, strict=True):
        padded[: len(row)] = row
    return {"samples": tf.constant(samples), "num_samples": tf.constant([len(row) for row in rows])}


def test_hypotheses_are_those_of_the_search_best_first(model, signatures):
    batch = _batch(networks.noise(1.0, seed=1), networks.noise(0.6, seed=2))
    found = signatures["nbest"](**batch)
    wanted = recognize(
        model, tf.where(tf.math.is_nan(batch["samples"]), 0.0, batch["samples"]), batch["num_samples"], beam=3
    )
    assert found["text"].shape == (2, 3) and len(set(found["text"].numpy()[0])) == 3
    np.testing.assert_allclose(found["scores"], wanted.nbest.scores, atol=1e-3)
    assert np.all(np.diff(found["scores"]) <= 0)
    for name in ("labels", "frames"):
        width = found[name].shape[2]
        np.testing.assert_array_equal(found[name], getattr(wanted.nbest, name)[:, :, :width])
    assert found["labels"].shape[2] == tf.reduce_max(found["num_labels"])
    spelled = "".join(networks.PIECES[label] for label in found["labels"][0, 1, : found["num_labels"][0, 1]])
    assert found["text"].numpy()[0, 1].decode() == spelled.strip()


@pytest.mark.parametrize("signature", ["transcribe", "nbest"])
def test_bad_rows_are_named_and_change_nothing_for_the_others(signatures, signature):
    good, bad = networks.noise(1.0, seed=1), networks.noise(0.7, seed=2)
    bad[100] = np.inf
    alone, together = (signatures[signature](**_batch(*rows)) for rows in ([good], [good, bad]))
    assert together["error"].numpy().tolist() == [b"", b"samples are not finite"]
    np.testing.assert_array_equal(together["text"][0], alone["text"][0])
    assert np.all(together["text"].numpy()[1] == b"") and np.any(together["text"].numpy()[0] != b"")


def test_full_context_model_offers_whole_utterances_only(signatures):
    assert sorted(signatures) == ["nbest", "transcribe"]


def test_module_lists_every_variable(model):
    assert len(OfflineModule(model, networks.PIECES).variables) == len(model.weights)
