"""Rows that step against a step of all rows."""

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding import networks
from tf_rnnt_kd.decoding.predictions import step_rows, take_rows
from tf_rnnt_kd.decoding.streaming import SearchState


@pytest.mark.parametrize(("num_rows", "share"), [(1, 1.0), (20, 0.0), (20, 0.2), (20, 0.9), (17, 1.0)])
def test_rows_that_step_are_moved_and_the_others_stay(num_rows, share):
    search = networks.Random(seed=num_rows).search
    before = SearchState(*search["initial_prediction"](num_rows))
    before = SearchState(*search["step_prediction"](tf.range(num_rows) % 5, before.state))
    steps = np.random.default_rng(0).random(num_rows) < share
    label = tf.range(num_rows) % 4
    found = step_rows(tf.constant(steps), label, before, search["step_prediction"])
    moved = SearchState(*search["step_prediction"](label, before.state))
    for ours, new, old in zip(*map(tf.nest.flatten, (found, moved, before)), strict=True):
        np.testing.assert_allclose(ours.numpy()[steps], new.numpy()[steps], rtol=1e-6)
        np.testing.assert_array_equal(ours.numpy()[~steps], old.numpy()[~steps])


def test_rows_are_taken_in_every_tensor():
    taken = take_rows(tf.constant([2, 0, 2]), (tf.range(3), (tf.eye(3),)))
    assert taken[0].numpy().tolist() == [2, 0, 2]
    np.testing.assert_array_equal(taken[1][0], np.eye(3)[[2, 0, 2]])
