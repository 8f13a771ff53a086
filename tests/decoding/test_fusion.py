"""Fused scores against those of all label sequences of small random networks, with a bigram table as language model."""

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding import networks
from tests.decoding.test_beam import traced_search
from tests.oracles import beam as oracle
from tf_rnnt_kd.decoding.beam import beam_search
from tf_rnnt_kd.decoding.fusion import LabelScorer, internal_language_model, penalise_blank, weighted_sum
from tf_rnnt_kd.decoding.greedy import greedy_search

_V = networks.Random.vocabulary_size


def bigram(seed, blank_id):
    """A table [V, V] whose column of blank is NaN, and its scorer; blank's row is that of the start."""
    table = np.log(np.random.default_rng(seed).dirichlet(np.ones(_V), _V))
    table[:, blank_id] = np.nan
    table = table.astype("float32")

    def step(label, state):
        return tf.gather(table, label), (state[0] + 1,)

    def initial(batch_size):
        return tf.repeat(table[blank_id][None], batch_size, axis=0), (tf.zeros([batch_size], tf.int32),)

    return table, LabelScorer(initial, step)


def sequences(found, row):
    """{labels: score} of one utterance."""
    lengths, scores = found.num_labels[row].numpy(), found.scores[row].numpy()
    labels = [tuple(line[:length].tolist()) for line, length in zip(found.labels[row].numpy(), lengths, strict=True)]
    return {line: score for line, score in zip(labels, scores, strict=True) if np.isfinite(score)}


def assert_same_order(found, wanted):
    assert list(found) == sorted(wanted, key=lambda labels: -wanted[labels])
    np.testing.assert_allclose(list(found.values()), [wanted[labels] for labels in found], rtol=1e-4)


@pytest.mark.parametrize("blank_id", [0, 3])
def test_a_beam_of_all_gives_every_sequence_its_fused_score(blank_id):
    network = networks.Random(seed=1, blank_id=blank_id)
    (first, first_scorer), (second, second_scorer) = bigram(2, blank_id), bigram(3, blank_id)
    internal = internal_language_model(
        network.search["join"],
        network.search["initial_prediction"],
        network.search["step_prediction"],
        blank_id=blank_id,
    )
    scorer = weighted_sum([(first_scorer, 0.6), (second_scorer, 0.2), (internal, -0.3)], length_bonus=0.4)
    encoded = network.encoded(3, 2)
    lengths = [2, 1, 0]
    options = {"beam": 60, "max_symbols_per_frame": 1, "max_gap": 1e3}
    found = beam_search(encoded, lengths, **network.search, **options, label_scorer=scorer)
    for row, length in enumerate(lengths):
        wanted = oracle.all_hypotheses(encoded[row, :length], **network.numpy_search, max_symbols_per_frame=1)
        for labels in wanted:
            wanted[labels] += 0.6 * oracle.table_score(labels, first, start_id=blank_id)
            wanted[labels] += 0.2 * oracle.table_score(labels, second, start_id=blank_id)
            wanted[labels] += -0.3 * oracle.internal_score(labels, **network.numpy_search) + 0.4 * len(labels)
        assert_same_order(sequences(found, row), wanted)


def test_scorers_without_weight_and_bonus_change_nothing():
    network = networks.Random(seed=4)
    _, scorer = bigram(5, blank_id=0)
    arguments = network.encoded(2, 8), [8, 5]
    plain = traced_search(*arguments, **network.search, beam=4)
    fused = traced_search(*arguments, **network.search, beam=4, label_scorer=weighted_sum([(scorer, 0.0)]))
    tf.nest.map_structure(np.testing.assert_array_equal, plain, fused)


def test_a_forbidden_label_is_never_found():
    network = networks.Random(seed=6)
    table = np.zeros([_V, _V], np.float32)
    table[:, 2] = -np.inf

    def step(label, state):
        return tf.gather(table, label), state

    scorer = LabelScorer(lambda batch_size: (tf.repeat(table[:1], batch_size, axis=0), ()), step)
    arguments = network.encoded(4, 15), [15, 15, 9, 0]
    assert np.any(traced_search(*arguments, **network.search, beam=4).labels == 2)
    found = traced_search(*arguments, **network.search, beam=4, label_scorer=weighted_sum([(scorer, 0.5)]))
    assert np.any(found.labels == 1) and not np.any(found.labels == 2)


def test_a_bonus_lengthens_and_a_penalty_of_blank_too():
    network = networks.Random(seed=7)
    arguments = network.encoded(8, 15), [15] * 8
    options = {**network.search, "beam": 4}
    plain = traced_search(*arguments, **options).num_labels[:, 0]
    longer = traced_search(*arguments, **options, label_scorer=weighted_sum([], length_bonus=2.0)).num_labels[:, 0]
    assert np.all(longer > plain)
    options["join"] = penalise_blank(options["join"], 2.0)
    penalised = traced_search(*arguments, **options).num_labels[:, 0]
    assert np.all(penalised >= plain) and np.mean(penalised) > np.mean(plain) + 1


def test_penalised_blank_is_what_a_lower_bias_would_be():
    network, lowered = networks.Random(seed=8, blank_id=2), networks.Random(seed=8, blank_id=2, blank_bias=0.5)
    arguments = network.encoded(2, 9), [9, 9]
    search = {**network.search, "join": penalise_blank(network.search["join"], 1.5, blank_id=2)}
    found, wanted = greedy_search(*arguments, **search), greedy_search(*arguments, **lowered.search)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)
