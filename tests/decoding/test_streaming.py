"""Chunks of any size give the hypotheses of the whole."""

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding import networks
from tf_rnnt_kd.decoding.greedy import greedy_search
from tf_rnnt_kd.decoding.streaming import SearchState, search_chunk

_BATCH_SIZE, _NUM_FRAMES = 3, 40


def _search(network):
    options = {key: value for key, value in network.search.items() if key != "initial_prediction"}

    def search(encoded, carried):
        return search_chunk(encoded, tf.fill([_BATCH_SIZE], tf.shape(encoded)[1]), carried, **options)

    return tf.function(search, reduce_retracing=True, autograph=False)


def _search_in_chunks(network, encoded, boundaries):
    search = _search(network)
    carried = SearchState(*network.search["initial_prediction"](_BATCH_SIZE))
    labels, frames, score = [[] for _ in encoded], [[] for _ in encoded], 0.0
    for start, end in zip(boundaries[:-1], boundaries[1:], strict=True):
        found, carried = search(tf.constant(encoded[:, start:end]), carried)
        score = score + found.scores.numpy()
        for row, num_labels in enumerate(found.num_labels.numpy()):
            labels[row] += found.labels[row, :num_labels].numpy().tolist()
            frames[row] += (start + found.frames[row, :num_labels].numpy()).tolist()
    return labels, frames, score


@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_equal_the_whole(seed):
    network = networks.Random(seed=seed)
    encoded = network.encoded(_BATCH_SIZE, _NUM_FRAMES)
    cuts = np.sort(np.random.default_rng(seed).integers(0, _NUM_FRAMES, 7))  # repeated cuts make empty chunks
    labels, frames, score = _search_in_chunks(network, encoded, [0, *cuts.tolist(), _NUM_FRAMES])
    whole = greedy_search(encoded, [_NUM_FRAMES] * _BATCH_SIZE, **network.search)
    for row, num_labels in enumerate(whole.num_labels.numpy()):
        assert labels[row] == whole.labels[row, :num_labels].numpy().tolist()
        assert frames[row] == whole.frames[row, :num_labels].numpy().tolist()
    np.testing.assert_allclose(score, whole.scores, rtol=1e-5)


def test_single_frames_equal_the_whole():
    network = networks.Random(seed=7)
    encoded = network.encoded(_BATCH_SIZE, 12)
    labels, _, _ = _search_in_chunks(network, encoded, list(range(13)))
    whole = greedy_search(encoded, [12] * _BATCH_SIZE, **network.search)
    assert labels == [row[:n].tolist() for row, n in zip(whole.labels.numpy(), whole.num_labels.numpy(), strict=True)]


def test_empty_chunk_carries_the_state_unchanged():
    network = networks.Random(seed=8)
    options = {key: value for key, value in network.search.items() if key != "initial_prediction"}
    carried = SearchState(*network.search["initial_prediction"](2))
    found, after = search_chunk(tf.zeros([2, 0, network.width]), [0, 0], carried, **options)
    assert found.labels.shape == (2, 0)
    tf.nest.map_structure(np.testing.assert_array_equal, carried, after)
