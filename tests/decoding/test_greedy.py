"""Greedy search against a scripted word, and against the oracle on random small networks."""

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding import networks
from tests.oracles import greedy as oracle
from tf_rnnt_kd.decoding.greedy import greedy_search


def test_scripted_network_spells_its_word():
    script = {1: "T", 3: "EN", 4: " ", 11: "S", 12: "IX"}
    search, alphabet = networks.scripted(script, num_frames=14)
    hypotheses = greedy_search(tf.eye(14)[None], [14], **search)
    assert "".join(alphabet[label] for label in hypotheses.labels[0, : hypotheses.num_labels[0]]) == "TEN SIX"
    assert hypotheses.frames[0, :7].numpy().tolist() == [1, 3, 3, 4, 11, 12, 12]


def test_scripted_network_stops_at_the_length():
    search, alphabet = networks.scripted({1: "T", 3: "EN", 5: "S"}, num_frames=8)
    hypotheses = greedy_search(tf.tile(tf.eye(8)[None], [3, 1, 1]), [8, 4, 0], **search)
    spelled = ["".join(alphabet[label] for label in row) for row in hypotheses.labels.numpy()]
    assert spelled == ["TENS", "TEN", ""]


@pytest.mark.parametrize("blank_id", [0, 2])
@pytest.mark.parametrize(("cap", "max_labels"), [(1, None), (4, None), (2, 5)])
def test_search_equals_the_oracle(blank_id, cap, max_labels):
    network = networks.Random(seed=10 * cap + blank_id, blank_id=blank_id)
    lengths = [0, 1, 7, 8, 9, 20]
    encoded = network.encoded(len(lengths), 20)
    found = greedy_search(encoded, lengths, **network.search, max_symbols_per_frame=cap, max_labels=max_labels)
    assert found.labels.shape[1] == (20 * cap if max_labels is None else max_labels)
    for row, length in enumerate(lengths):
        labels, frames, label_log_probs, score = oracle.greedy_search(
            encoded[row, :length], **network.numpy_search, max_symbols_per_frame=cap, max_labels=max_labels
        )
        num_labels = found.num_labels[row].numpy()
        assert found.labels[row].numpy().tolist() == labels + [0] * (found.labels.shape[1] - num_labels)
        assert found.frames[row, :num_labels].numpy().tolist() == frames
        np.testing.assert_allclose(found.label_log_probs[row, :num_labels], label_log_probs, rtol=1e-4, atol=1e-5)
        assert not np.any(found.label_log_probs[row, num_labels:])
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5, atol=1e-5)


def test_padding_does_not_change_hypotheses():
    network = networks.Random(seed=3)
    encoded = network.encoded(3, 12)
    lengths = np.array([12, 5, 0])
    padded = np.where(np.arange(12)[None, :, None] < lengths[:, None, None], encoded, np.nan)
    for clean, dirty in zip(
        greedy_search(encoded, lengths, **network.search), greedy_search(padded, lengths, **network.search), strict=True
    ):
        np.testing.assert_array_equal(clean, dirty)


def test_one_trace_serves_every_size():
    network = networks.Random(seed=4)
    signature = [tf.TensorSpec([None, None, network.width]), tf.TensorSpec([None], tf.int32)]
    search = tf.function(
        lambda encoded, lengths: greedy_search(encoded, lengths, **network.search),
        input_signature=signature,
        autograph=False,
    )
    for batch_size, num_frames in [(1, 0), (0, 4), (1, 1), (3, 9), (2, 30)]:
        encoded = network.encoded(batch_size, num_frames)
        lengths = np.full([batch_size], num_frames, np.int32)
        for traced, eager in zip(
            search(encoded, lengths), greedy_search(encoded, lengths, **network.search), strict=True
        ):
            np.testing.assert_allclose(traced, eager, rtol=1e-5)
    assert search.experimental_get_tracing_count() == 1


def test_search_compiles_with_static_shapes():
    network = networks.Random(seed=5)
    encoded = network.encoded(2, 9)
    search = tf.function(
        lambda encoded: greedy_search(encoded, [9, 6], **network.search, max_labels=12),
        jit_compile=True,
        autograph=False,
    )
    np.testing.assert_array_equal(
        search(encoded).labels, greedy_search(encoded, [9, 6], **network.search).labels[:, :12]
    )


def test_half_precision_network_is_scored_in_float32():
    network = networks.Random(seed=6, dtype=tf.bfloat16)
    hypotheses = greedy_search(tf.cast(network.encoded(2, 6), tf.bfloat16), [6, 6], **network.search)
    assert hypotheses.scores.dtype == tf.float32


def test_network_that_never_stops_is_capped():
    search, _ = networks.scripted({0: "A" * 50}, num_frames=2)
    hypotheses = greedy_search(tf.eye(2)[None], [2], **search, max_symbols_per_frame=3)
    assert hypotheses.num_labels[0] == 3
