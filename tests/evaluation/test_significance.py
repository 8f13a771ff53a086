"""Intervals have closed forms where there are any, cover what they say, know their units, and star nothing early."""

import math

import numpy as np
import pytest

from tf_rnnt_kd.evaluation import significance
from tf_rnnt_kd.evaluation.significance import Estimate, Interval, paired_difference, t_quantile, word_error_rate


def _draw(generator, num_utterances, rate=0.1):
    words = generator.integers(3, 12, num_utterances)
    return generator.binomial(words, rate), words


def _logistic(values):
    return 1.0 / (1.0 + np.exp(-values))


class Voices:
    """Test sets of speakers who differ: logit-normal error rates, and unequal numbers of utterances."""

    middle, spread = -2.3, 0.6

    def __init__(self, num_speakers, seed):
        self.generator = np.random.default_rng(seed)
        self.num_speakers = num_speakers

    def draw(self, num_systems, seed_effects=(0.0,)):
        """Errors of each system and run [S, K, N], words [N] and speakers [N]."""
        sizes = np.maximum(1, np.round(11 * np.exp(0.5 * self.generator.normal(size=self.num_speakers)))).astype(int)
        speakers = np.repeat(np.arange(self.num_speakers), sizes)
        words = self.generator.integers(3, 12, len(speakers))
        effects = self.spread * self.generator.normal(size=[num_systems, 1, self.num_speakers])
        rates = _logistic(self.middle + effects + np.reshape(seed_effects, [1, -1, 1]))[..., speakers]
        return self.generator.binomial(words, rates), words, speakers.astype(str)

    def true_rate(self, spread=spread):
        normal = np.linspace(-8, 8, 4001)
        density = np.exp(-0.5 * normal**2)
        return 100 * np.sum(density * _logistic(self.middle + spread * normal)) / np.sum(density)


def covers(interval, value):
    return interval.low <= value <= interval.high


# -- what is known in closed form --


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (1, 12.7062047),
        (2, 4.30265273),
        (3, 3.18244631),
        (5, 2.57058184),
        (9, 2.26215716),
        (30, 2.04227246),
        (1000, 1.9623391),
    ],
)
def test_quantiles_of_t_are_those_of_the_tables(degrees, expected):
    assert t_quantile(degrees) == pytest.approx(expected, rel=1e-8)


def test_quantile_of_t_at_other_levels():
    assert t_quantile(1, 0.5) == pytest.approx(1.0)
    assert t_quantile(9, 0.99) == pytest.approx(3.24983554, rel=1e-8)


def test_t_interval_of_equal_units_is_that_of_their_mean():
    surplus, words = np.array([3, -1, 2, 0, 2, 3]), np.full([6], 10)
    rates = 10.0 * surplus  # percent
    found = paired_difference(surplus, np.zeros([6]), words)
    half = 2.57058184 * np.std(rates, ddof=1) / math.sqrt(6)
    assert found.points == pytest.approx(15.0)
    assert found.t_interval == pytest.approx((15.0 - half, 15.0 + half))


def test_t_interval_of_a_rate_is_symmetric_in_its_root_and_linearised():
    errors, words = np.array([1, 4, 2]), np.array([10, 20, 20])
    rate = 7 / 50
    spread = math.sqrt(1.5 * ((1 - 1.4) ** 2 + (4 - 2.8) ** 2 + (2 - 2.8) ** 2)) / 50
    half = 4.30265273 * spread / (2 * math.sqrt(rate))
    found = word_error_rate(errors, words).t_interval
    ends = max(math.sqrt(rate) - half, 0) ** 2, (math.sqrt(rate) + half) ** 2
    assert found == pytest.approx((100 * ends[0], 100 * ends[1]))


def test_intervals_of_many_utterances_have_the_width_of_the_normal_approximation():
    generator = np.random.default_rng(0)
    words = np.full([2000], 10)
    low, high = word_error_rate(generator.binomial(words, 0.1), words).interval
    expected = 2 * 1.96 * 100 * np.sqrt(0.1 * 0.9 / 20_000)
    np.testing.assert_allclose(high - low, expected, rtol=0.03)


def test_seeds_add_their_t_interval_to_that_of_the_units():
    generator = np.random.default_rng(1)
    errors, words = _draw(generator, 60)
    runs = np.stack([errors, errors + 1, errors + (np.arange(60) < 30)])
    rates = 100 * runs.sum(1) / words.sum()
    alone = paired_difference(runs.mean(0), np.zeros([60]), words)
    joint = paired_difference(runs, np.zeros([3, 60]), words)
    half = t_quantile(2) * np.std(rates, ddof=1) / math.sqrt(3)
    away = math.hypot(joint.points - alone.interval.low, half)
    assert joint.points == alone.points
    assert joint.interval == pytest.approx((joint.points - away, joint.points + away))


def test_seeds_that_all_agree_add_nothing():
    errors, words = _draw(np.random.default_rng(0), 60)
    assert word_error_rate([errors, errors], words).interval == pytest.approx(word_error_rate(errors, words).interval)


def test_runs_are_paired_where_there_are_as_many_and_else_scatter_apart():
    errors, words = _draw(np.random.default_rng(0), 60)
    other, _ = _draw(np.random.default_rng(1), 60)
    shifts = np.array([[0], [3], [6]])
    paired = paired_difference(errors + shifts, other + shifts, words).interval
    assert paired == pytest.approx(paired_difference(errors, other, words).interval)  # what seeds share is no scatter
    apart = paired_difference(errors + shifts, (other + shifts)[:2], words).interval
    assert apart.high - apart.low > 5 * (paired.high - paired.low)
    one_sided = paired_difference(errors, other + shifts, words).interval
    assert one_sided.high - one_sided.low > 5 * (paired.high - paired.low)


# -- coverage --


@pytest.mark.parametrize("num_speakers", [20, 50])
def test_interval_of_a_rate_covers_other_speakers_as_often_as_it_says(num_speakers, monkeypatch):
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 1000)
    voices = Voices(num_speakers, 7)
    true = voices.true_rate()
    found = [word_error_rate(errors[0], *rest) for errors, *rest in (voices.draw(1) for _ in range(1000))]
    assert 0.93 <= np.mean([covers(one.interval, true) for one in found]) <= 0.97
    assert {(one.unit, one.units) for one in found} == {("speakers", num_speakers)}


@pytest.mark.parametrize("num_speakers", [20, 50])
def test_systems_that_do_not_differ_get_a_star_in_five_of_a_hundred_sets(num_speakers, monkeypatch):
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 1000)
    voices = Voices(num_speakers, 7)
    found = [paired_difference(*errors, *rest) for errors, *rest in (voices.draw(2) for _ in range(1000))]
    assert 0.93 <= np.mean([covers(one.interval, 0.0) for one in found]) <= 0.97
    assert 0.03 <= np.mean([one.is_clear for one in found]) <= 0.07


def test_six_speakers_are_said_to_be_few_and_rarely_star_what_does_not_differ(monkeypatch):
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 1000)
    voices = Voices(6, 7)
    found = [paired_difference(*errors, *rest) for errors, *rest in (voices.draw(2) for _ in range(500))]
    assert all(one.t_interval for one in found)
    assert np.mean([one.is_clear for one in found]) <= 0.07  # 38 % where utterances were taken to be independent


def test_three_seeds_and_twenty_speakers_are_covered_together(monkeypatch):
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 500)
    voices = Voices(20, 7)
    true, found = voices.true_rate(math.hypot(0.6, 0.3)), []
    for _ in range(500):
        errors, *rest = voices.draw(1, 0.3 * voices.generator.normal(size=3))
        found.append(word_error_rate(errors[0], *rest))
    assert 0.93 <= np.mean([covers(one.interval, true) for one in found])


def test_interval_of_independent_utterances_covers_too(monkeypatch):
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 500)
    generator = np.random.default_rng(0)
    found = [word_error_rate(*_draw(generator, 150)) for _ in range(1000)]
    assert 0.93 <= np.mean([covers(one.interval, 10.0) for one in found]) <= 0.97


# -- units --


def test_what_speakers_share_widens_the_interval():
    generator = np.random.default_rng(0)
    speakers = np.repeat(np.arange(20), 15)
    words = np.full([300], 10)
    errors = generator.binomial(words, np.repeat(generator.uniform(0.0, 0.3, 20), 15))
    by_speaker, by_utterance = word_error_rate(errors, words, speakers.astype(str)), word_error_rate(errors, words)
    assert (by_speaker.unit, by_speaker.units) == ("speakers", 20)
    assert (by_utterance.unit, by_utterance.units) == ("utterances", 300)
    narrow, wide = (one.interval.high - one.interval.low for one in (by_utterance, by_speaker))
    assert wide > 1.5 * narrow


def test_a_speaker_of_one_utterance_each_is_an_utterance():
    errors, words = _draw(np.random.default_rng(0), 40)
    speakers = [f"{i:03}" for i in range(40)]
    assert word_error_rate(errors, words, speakers).interval == word_error_rate(errors, words).interval


@pytest.mark.parametrize("speakers", [[""] * 12, ["anna"] * 12, None])
def test_nobody_or_one_speaker_leaves_the_utterances(speakers):
    errors, words = _draw(np.random.default_rng(0), 12)
    found = word_error_rate(errors, words, speakers)
    assert (found.unit, found.units) == ("utterances", 12)


def test_utterances_without_a_name_count_as_one_speaker():
    errors, words = _draw(np.random.default_rng(0), 12)
    found = paired_difference(errors, errors + 1, words, ["anna"] * 4 + ["ben"] * 4 + [""] * 4)
    assert (found.unit, found.units) == ("speakers", 3)


@pytest.mark.parametrize("units", [2, 9, 10, 11])
def test_a_t_interval_stands_beside_that_of_few_units(units):
    errors, words = _draw(np.random.default_rng(0), units)
    assert (word_error_rate(errors, words).t_interval is not None) == (units < 10)


# -- stars --


def test_a_single_utterance_is_never_clear_and_has_no_interval():
    found = paired_difference([0], [1], [20])
    assert found == Estimate(-5.0, None, "utterances", 1) and not found.is_clear


@pytest.mark.parametrize(("units", "expected"), [(1, False), (2, False), (4, False), (5, True), (12, True)])
def test_no_difference_is_clear_from_fewer_than_five_units(units, expected):
    assert paired_difference([0] * units, [1] * units, [20] * units).is_clear is expected
    # A hundred utterances of as many speakers are no more.
    speakers = [str(i % units) for i in range(100)]
    assert paired_difference([0] * 100, [1] * 100, [20] * 100, speakers).is_clear is (expected or units == 1)


@pytest.mark.parametrize(
    ("interval", "t_interval", "expected"),
    [((1, 2), (0.5, 3), True), ((1, 2), (-0.5, 3), False), ((-1, 2), (0.5, 3), False), ((-2, -1), None, True)],
)
def test_every_interval_has_to_exclude_zero(interval, t_interval, expected):
    by_t = t_interval and Interval(*t_interval)
    assert Estimate(1.5, Interval(*interval), "speakers", 6, by_t).is_clear is expected


# -- the drawings --


def test_same_seed_gives_the_same_interval():
    errors, words = _draw(np.random.default_rng(0), 50)
    assert word_error_rate(errors, words, seed=1) == word_error_rate(errors, words, seed=1)
    assert word_error_rate(errors, words, seed=1) != word_error_rate(errors, words, seed=2)


def test_interval_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    errors, words = _draw(np.random.default_rng(0), 50)
    whole = word_error_rate(errors, words).interval
    monkeypatch.setattr(significance, "_DRAWS_AT_ONCE", 7_777)
    assert word_error_rate(errors, words).interval == pytest.approx(whole, rel=1e-12)


def test_drawings_without_scatter_do_not_make_the_interval_endless():
    errors = np.zeros([300])
    errors[:2] = 1
    found = paired_difference(errors, np.zeros([300]), np.full([300], 10))
    assert found.interval.low < 0 < found.interval.high < 1.0 and not found.is_clear


def test_pairing_cancels_what_both_systems_find_hard():
    generator = np.random.default_rng(0)
    words = np.full([300], 10)
    errors = generator.binomial(words, generator.beta(0.3, 1.5, 300))
    better = np.maximum(errors - generator.binomial(1, 0.2, 300), 0)
    difference = paired_difference(errors, better, words)
    np.testing.assert_allclose(difference.points, 100 * (errors - better).sum() / 3000)
    assert difference.is_clear
    unpaired = word_error_rate(better, words).interval.high, word_error_rate(errors, words).interval.low
    assert unpaired[0] > unpaired[1]  # they overlap


def test_difference_changes_sign_with_the_order_and_is_zero_for_equals():
    generator = np.random.default_rng(0)
    errors, words = _draw(generator, 80)
    other, _ = _draw(generator, 80)
    forth, back = paired_difference(errors, other, words), paired_difference(other, errors, words)
    np.testing.assert_allclose([forth.points, *forth.interval], [-back.points, -back.interval.high, -back.interval.low])
    same = paired_difference(errors, errors, words)
    assert (same.points, same.interval) == (0.0, (0.0, 0.0)) and not same.is_clear


@pytest.mark.parametrize("errors", [[0, 1], [0, 0]])
def test_utterances_without_words_or_errors_are_no_obstacle(errors):
    assert word_error_rate(errors, [0, 0]).interval.low == 0.0
    assert word_error_rate([0, 0], [4, 0]).interval == (0.0, 0.0)


@pytest.mark.parametrize(("errors", "words", "speakers"), [([1, 2], [3], None), ([], [], None), ([1], [3], ["a", "b"])])
def test_unequal_arguments_are_refused(errors, words, speakers):
    with pytest.raises(ValueError, match=r"equal|speakers of"):
        word_error_rate(errors, words, speakers)
