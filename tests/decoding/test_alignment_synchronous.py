"""Alignment-length-synchronous search against greedy search, and against all label sequences of random networks."""

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding import networks
from tests.decoding.test_fusion import assert_same_order, bigram, sequences
from tests.oracles import beam as oracle
from tf_rnnt_kd.decoding.alignment_synchronous import alignment_synchronous_search
from tf_rnnt_kd.decoding.beam import beam_search
from tf_rnnt_kd.decoding.fusion import weighted_sum
from tf_rnnt_kd.decoding.greedy import greedy_search


def test_scripted_network_spells_its_word():
    search, alphabet = networks.scripted({1: "T", 3: "EN", 4: " ", 11: "S", 12: "IX"}, num_frames=14)
    found = alignment_synchronous_search(tf.eye(14)[None], [14], **search, beam=3).best
    assert "".join(alphabet[label] for label in found.labels[0, : found.num_labels[0]]) == "TEN SIX"
    assert found.frames[0, :7].numpy().tolist() == [1, 3, 3, 4, 11, 12, 12]


@pytest.mark.parametrize(("blank_id", "cap", "max_labels"), [(0, 4, None), (2, 2, 5)])
def test_a_beam_of_one_is_greedy(blank_id, cap, max_labels):
    network = networks.Random(seed=cap, blank_id=blank_id)
    arguments = network.encoded(4, 12), [0, 1, 7, 12]
    options = {**network.search, "max_symbols_per_frame": cap, "max_labels": max_labels}
    found, wanted = (
        alignment_synchronous_search(*arguments, **options, beam=1).best,
        greedy_search(*arguments, **options),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blank_id", [0, 3])
def test_a_beam_of_all_gives_every_sequence_its_fused_score(blank_id):
    network = networks.Random(seed=1, blank_id=blank_id)
    table, scorer = bigram(2, blank_id)
    encoded, lengths = network.encoded(3, 3), [3, 1, 0]
    found = alignment_synchronous_search(
        encoded,
        lengths,
        **network.search,
        beam=60,
        max_symbols_per_frame=2,
        max_labels=2,
        max_gap=1e3,
        label_scorer=weighted_sum([(scorer, 0.6)], length_bonus=0.4),
    )
    for row, length in enumerate(lengths):
        wanted = oracle.all_hypotheses(encoded[row, :length], **network.numpy_search, max_symbols_per_frame=2)
        wanted = {labels: score for labels, score in wanted.items() if len(labels) <= 2}
        for labels in wanted:
            wanted[labels] += 0.6 * oracle.table_score(labels, table, start_id=blank_id) + 0.4 * len(labels)
        assert_same_order(sequences(found, row), wanted)


def test_padding_and_other_utterances_change_nothing():
    network = networks.Random(seed=3)
    encoded, lengths = network.encoded(3, 8), np.array([8, 4, 0])
    padded = np.where(np.arange(8)[None, :, None] < lengths[:, None, None], encoded, np.nan)
    options = {**network.search, "beam": 4, "max_labels": 20}
    found = alignment_synchronous_search(padded, lengths, **options)
    for row, length in enumerate(lengths):
        alone = alignment_synchronous_search(encoded[row : row + 1, :length], [length], **options)
        for ours, theirs in zip(found, alone, strict=True):
            np.testing.assert_allclose(ours[row], theirs[0], rtol=1e-5, atol=1e-5)


def test_it_finds_what_the_time_synchronous_search_finds_if_both_are_wide():
    network = networks.Random(seed=12)
    arguments = network.encoded(4, 6), [6, 6, 5, 2]
    options = {**network.search, "beam": 64, "max_symbols_per_frame": 2}
    found, wanted = alignment_synchronous_search(*arguments, **options).best, beam_search(*arguments, **options).best
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=2e-2)


def test_search_compiles_with_static_shapes():
    network = networks.Random(seed=5)
    encoded = network.encoded(2, 9)

    def search(encoded):
        return alignment_synchronous_search(encoded, [9, 6], **network.search, beam=4, max_labels=12)

    for compiled, plain in zip(tf.function(search, jit_compile=True)(encoded), search(encoded), strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-5)
