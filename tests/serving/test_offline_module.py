"""Whole utterances: the best hypothesis, several, and what is said of audio that cannot be heard."""

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import networks
from tf_rnnt_kd.decoding.hypotheses import NBest
from tf_rnnt_kd.decoding.offline import recognize
from tf_rnnt_kd.serving.offline_module import OfflineModule, distinct


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


@pytest.mark.parametrize("signature", ["transcribe", "nbest"])
def test_rows_out_of_scale_are_named(signatures, signature):
    for value, error in ((1e20, b"samples reach beyond 8, where 1 is full scale"), (8.0, b"")):
        bad = networks.noise(0.7, seed=2)
        bad[100] = value
        assert signatures[signature](**_batch(bad))["error"].numpy().tolist() == [error]


@pytest.mark.parametrize("causal", [False, True])
def test_a_network_that_overflows_says_so_and_has_no_text(causal):
    model = networks.transducer(causal=causal)
    model.joint.bias.assign([np.nan, *[0.0] * (len(networks.PIECES) - 1)])
    signatures = OfflineModule(model, networks.PIECES, beam=3).signatures()
    batch = _batch(networks.noise(0.7, seed=2), networks.noise(0.0))
    for name, scores in (("transcribe", 0.0), ("nbest", [0.0, -np.inf, -np.inf])):
        found = signatures[name](**batch)
        assert found["error"].numpy().tolist() == [b"features, scores or state are not finite", b""]
        assert np.all(found["text"].numpy() == b"") and np.all(found["num_labels"] == 0)
        np.testing.assert_array_equal(found["scores"], [scores, scores])


def test_each_text_comes_once_with_the_probability_of_all_its_spellings():
    labels = [[[1, 2], [2, 0], [3, 0], [2, 1]], [[3, 0], [2, 0], [0, 0], [0, 0]]]  # " A", "A", "B", "A "; "B", "A"
    scores = [np.log([0.4, 0.3, 0.2, 0.05]), [-1.0, -2.0, -np.inf, -np.inf]]
    numbers = [[2, 1, 1, 2], [1, 1, 0, 0]]
    frames = np.array(labels) + 10 * (np.array(labels) > 0)
    log_probs = -np.array(labels, np.float32)
    found = NBest(*map(tf.constant, (labels, numbers, np.float32(scores), frames, log_probs)))
    joined = distinct(networks.PIECES, found)
    np.testing.assert_allclose(joined.scores[0], [np.log(0.75), np.log(0.2), -np.inf, -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(joined.labels[0], [[1, 2], [3, 0], [0, 0], [0, 0]])  # the best spelling stands
    np.testing.assert_array_equal(joined.num_labels[0], [2, 1, 0, 0])
    np.testing.assert_array_equal(joined.frames[0], [[11, 12], [13, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(joined.label_log_probs[0, 0], [-1.0, -2.0])
    for ours, theirs in zip(joined, found, strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_a_sum_of_spellings_may_overtake_the_best_one():
    labels = tf.constant([[[3, 0], [2, 0], [2, 1]]])
    scores = tf.math.log(tf.constant([[0.4, 0.35, 0.25]]))
    numbers, zeros = tf.constant([[1, 1, 2]]), tf.zeros([1, 3, 2])
    joined = distinct(networks.PIECES, NBest(labels, numbers, scores, tf.zeros_like(labels), zeros))
    np.testing.assert_allclose(joined.scores[0], [np.log(0.6), np.log(0.4), -np.inf], rtol=1e-5)
    np.testing.assert_array_equal(joined.labels[0, :, 0], [2, 3, 0])


def test_inputs_of_unequal_rows_are_refused(signatures):
    samples = tf.zeros([2, 2_000])
    for rows, lengths in ((2, 1), (1, 2), (0, 0), (0, 1)):
        for signature in signatures.values():
            with pytest.raises(tf.errors.InvalidArgumentError, match="inputs do not fit together: each of samples"):
                signature(samples=samples[:rows], num_samples=tf.fill([lengths], 2_000))


def test_full_context_model_offers_whole_utterances_only(signatures):
    assert sorted(signatures) == ["nbest", "transcribe"]


def test_module_lists_every_variable(model):
    assert len(OfflineModule(model, networks.PIECES).variables) == len(model.weights)
