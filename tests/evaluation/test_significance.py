"""The bootstrap is seeded, covers what it should, and pairs what it compares."""

import numpy as np
import pytest

from tf_rnnt_kd.evaluation import significance
from tf_rnnt_kd.evaluation.significance import paired_difference, wer_interval


def _draw(generator, num_utterances, rate=0.1):
    words = generator.integers(3, 12, num_utterances)
    return generator.binomial(words, rate), words


def test_same_seed_gives_the_same_interval():
    errors, words = _draw(np.random.default_rng(0), 50)
    assert wer_interval(errors, words, seed=1) == wer_interval(errors, words, seed=1)
    assert wer_interval(errors, words, seed=1) != wer_interval(errors, words, seed=2)


def test_interval_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    errors, words = _draw(np.random.default_rng(0), 50)
    whole = wer_interval(errors, words)
    monkeypatch.setattr(significance, "_DRAWS_AT_ONCE", 7_777)
    assert wer_interval(errors, words) == whole


def test_interval_covers_the_true_rate_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 500)
    generator = np.random.default_rng(0)
    intervals = [wer_interval(*_draw(generator, 150), seed=i) for i in range(300)]
    covered = np.mean([low <= 10.0 <= high for low, high in intervals])
    assert 0.91 <= covered <= 0.98


def test_interval_has_the_width_of_the_normal_approximation():
    generator = np.random.default_rng(0)
    words = np.full([2000], 10)
    low, high = wer_interval(generator.binomial(words, 0.1), words)
    expected = 2 * 1.96 * 100 * np.sqrt(0.1 * 0.9 / 20_000)
    np.testing.assert_allclose(high - low, expected, rtol=0.1)


def test_errors_that_cluster_in_utterances_widen_the_interval():
    generator = np.random.default_rng(0)
    words = np.full([500], 10)
    spread = wer_interval(generator.binomial(words, 0.1), words)
    clustered = wer_interval(10 * generator.binomial(1, 0.1, 500), words)
    assert clustered.high - clustered.low > 2 * (spread.high - spread.low)


def test_pairing_cancels_what_both_systems_find_hard():
    generator = np.random.default_rng(0)
    words = np.full([300], 10)
    errors = generator.binomial(words, generator.beta(0.3, 1.5, 300))
    better = np.maximum(errors - generator.binomial(1, 0.2, 300), 0)
    difference = paired_difference(errors, better, words)
    np.testing.assert_allclose(difference.points, 100 * (errors - better).sum() / 3000)
    assert difference.is_clear
    assert wer_interval(better, words).high > wer_interval(errors, words).low  # unpaired, they overlap


def test_difference_changes_sign_with_the_order_and_is_zero_for_equals():
    generator = np.random.default_rng(0)
    errors, words = _draw(generator, 80)
    other, _ = _draw(generator, 80)
    forth, back = paired_difference(errors, other, words), paired_difference(other, errors, words)
    np.testing.assert_allclose([forth.points, *forth.interval], [-back.points, -back.interval.high, -back.interval.low])
    same = paired_difference(errors, errors, words)
    assert same == (0.0, (0.0, 0.0)) and not same.is_clear


def test_utterances_without_words_are_no_obstacle():
    assert wer_interval([0, 1], [0, 0]).low == 0.0


def test_unequal_arguments_are_refused():
    with pytest.raises(ValueError, match="equal"):
        wer_interval([1, 2], [3])
