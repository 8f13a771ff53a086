"""Beam search against greedy search, and against all label sequences of small random networks."""

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding import networks
from tests.oracles import beam as oracle
from tf_rnnt_kd.decoding.beam import beam_search
from tf_rnnt_kd.decoding.greedy import greedy_search

traced_search = tf.function(beam_search, autograph=False)  # long searches run faster in a graph, tracing included


def labels_of(found, row, place):
    return tuple(found.labels[row, place, : found.num_labels[row, place]].numpy().tolist())


def test_scripted_network_spells_its_word():
    script = {1: "T", 3: "EN", 4: " ", 11: "S", 12: "IX"}
    search, alphabet = networks.scripted(script, num_frames=14)
    found = beam_search(tf.eye(14)[None], [14], **search, beam=3)
    assert "".join(alphabet[label] for label in labels_of(found, 0, 0)) == "TEN SIX"
    assert found.best.frames[0, :7].numpy().tolist() == [1, 3, 3, 4, 11, 12, 12]


@pytest.mark.parametrize("blank_id", [0, 2])
@pytest.mark.parametrize(("cap", "max_labels"), [(1, None), (4, None), (2, 5)])
def test_a_beam_of_one_is_greedy(blank_id, cap, max_labels):
    network = networks.Random(seed=10 * cap + blank_id, blank_id=blank_id)
    lengths = [0, 1, 7, 8, 9, 20]
    arguments = network.encoded(len(lengths), 20), lengths
    options = {**network.search, "max_symbols_per_frame": cap, "max_labels": max_labels}
    found, wanted = beam_search(*arguments, **options, beam=1).best, greedy_search(*arguments, **options)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("blank_id", [0, 3])
def test_a_beam_of_all_gives_every_sequence_its_probability(seed, blank_id):
    network = networks.Random(seed, blank_id=blank_id)
    lengths = [2, 1, 0]
    encoded = network.encoded(3, 2)
    found = beam_search(encoded, lengths, **network.search, beam=60, max_symbols_per_frame=1, max_gap=1e3)
    for row, length in enumerate(lengths):
        wanted = oracle.all_hypotheses(encoded[row, :length], **network.numpy_search, max_symbols_per_frame=1)
        wanted = sorted(wanted.items(), key=lambda item: -item[1])
        assert [labels_of(found, row, k) for k in range(len(wanted))] == [labels for labels, _ in wanted]
        np.testing.assert_allclose(found.scores[row, : len(wanted)], [score for _, score in wanted], rtol=1e-4)
        assert np.all(np.isneginf(found.scores[row, len(wanted) :]))
        assert not np.any(found.labels[row, len(wanted) :])


def test_several_symbols_on_a_frame_are_recombined():
    network = networks.Random(7)
    encoded = network.encoded(1, 2)
    found = beam_search(encoded, [2], **network.search, beam=450, max_symbols_per_frame=2, max_gap=1e3)
    wanted = oracle.all_hypotheses(encoded[0], **network.numpy_search, max_symbols_per_frame=2)
    assert len(wanted) == 341 and np.sum(np.isfinite(found.scores)) == 341
    for place in range(341):
        assert float(found.scores[0, place]) == pytest.approx(wanted[labels_of(found, 0, place)], rel=1e-4)


@pytest.mark.parametrize("blank_id", [0, 2])
def test_labels_carry_the_log_probability_of_their_node(blank_id):
    network = networks.Random(9, blank_id=blank_id)
    encoded = network.encoded(2, 9)
    found = beam_search(encoded, [9, 6], **network.search, beam=5)
    for row, place in np.argwhere(np.isfinite(found.scores)):
        labels = labels_of(found, row, place)
        frames = found.frames[row, place].numpy()[: len(labels)]
        wanted = oracle.label_log_probs(encoded[row], labels, frames, **network.numpy_search)
        np.testing.assert_allclose(found.label_log_probs[row, place, : len(labels)], wanted, rtol=1e-4, atol=1e-5)
        assert np.all(np.diff(frames) >= 0) and not np.any(found.label_log_probs[row, place, len(labels) :])


@pytest.mark.parametrize("seed", range(3))
def test_hypotheses_differ_and_their_scores_fall(seed):
    network = networks.Random(seed)
    found = traced_search(network.encoded(4, 15), [15, 9, 3, 15], **network.search, beam=6)
    for row in range(4):
        sequences = [labels_of(found, row, k) for k in range(6) if np.isfinite(found.scores[row, k])]
        assert len(set(sequences)) == len(sequences) > 1
    assert np.all(np.diff(np.nan_to_num(found.scores.numpy(), neginf=-1e9)) <= 0)


def test_a_wider_beam_finds_no_worse():
    network = networks.Random(11)
    arguments = network.encoded(20, 12), [12] * 20
    scores = [traced_search(*arguments, **network.search, beam=k).scores[:, 0].numpy() for k in (1, 4, 16)]
    assert np.mean(scores[1] >= scores[0] - 1e-5) >= 0.9 and np.mean(scores[2] >= scores[1] - 1e-5) >= 0.9
    assert np.mean(scores[2]) > np.mean(scores[0])


def test_padding_and_other_utterances_change_nothing():
    network = networks.Random(seed=3)
    encoded, lengths = network.encoded(3, 12), np.array([12, 5, 0])
    padded = np.where(np.arange(12)[None, :, None] < lengths[:, None, None], encoded, np.nan)
    found = beam_search(padded, lengths, **network.search, beam=4, max_labels=20)
    for row, length in enumerate(lengths):
        alone = beam_search(encoded[row : row + 1, :length], [length], **network.search, beam=4, max_labels=20)
        for ours, theirs in zip(found, alone, strict=True):
            np.testing.assert_allclose(ours[row], theirs[0], rtol=1e-5, atol=1e-5)


def test_an_utterance_of_nan_has_no_hypothesis_and_harms_no_other():
    network = networks.Random(seed=3)
    encoded = network.encoded(3, 8)
    broken = np.where(np.arange(3)[:, None, None] == 1, np.nan, encoded)
    found, wanted = (traced_search(values, [8, 8, 8], **network.search, beam=4) for values in (broken, encoded))
    assert not np.any(np.isfinite(found.scores[1])) and not np.any(found.num_labels[1])
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours.numpy()[[0, 2]], theirs.numpy()[[0, 2]])


def test_one_trace_serves_every_size():
    network = networks.Random(seed=4)
    search = tf.function(
        lambda encoded, lengths: beam_search(encoded, lengths, **network.search, beam=3),
        input_signature=[tf.TensorSpec([None, None, network.width]), tf.TensorSpec([None], tf.int32)],
        autograph=False,
    )
    for batch_size, num_frames in [(1, 0), (0, 4), (1, 1), (3, 9)]:
        arguments = network.encoded(batch_size, num_frames), np.full([batch_size], num_frames, np.int32)
        for traced, eager in zip(search(*arguments), beam_search(*arguments, **network.search, beam=3), strict=True):
            np.testing.assert_allclose(traced, eager, rtol=1e-5)
    assert search.experimental_get_tracing_count() == 1


def test_search_compiles_with_static_shapes():
    network = networks.Random(seed=5)
    encoded = network.encoded(2, 9)

    def search(encoded):
        return beam_search(encoded, [9, 6], **network.search, beam=4, max_labels=12)

    for compiled, plain in zip(tf.function(search, jit_compile=True)(encoded), search(encoded), strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-5)


def test_half_precision_networks_are_searched():
    network = networks.Random(seed=6, dtype=tf.bfloat16)
    found = beam_search(tf.cast(network.encoded(2, 8), tf.bfloat16), [8, 8], **network.search, beam=3)
    assert found.scores.dtype == tf.float32 and np.all(np.isfinite(found.scores[:, 0]))
