"""How far a word error rate, or a difference of two, may be due to the choice of test utterances."""

from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 10_000
_DRAWS_AT_ONCE = 4_000_000  # utterances drawn at once; bounds the memory to about 100 MB


class Interval(NamedTuple):
    """Ends of a 95 % percentile interval, in WER points (percent)."""

    low: float
    high: float


class Difference(NamedTuple):
    """WER of the first system minus that of the second.

    Attributes:
      points: on the test set as it is, in WER points; negative where the first system is better.
      interval: where 95 % of the resampled test sets put it.
    """

    points: float
    interval: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0


def wer_interval(errors: np.ndarray, words: np.ndarray, *, seed: int = 0) -> Interval:
    """95 % bootstrap interval of a WER, clustered by utterance: words of one utterance are not independent.

    Draws N utterances with replacement 10,000 times and takes the 2.5 and 97.5 % quantiles of
    100 sum(errors) / sum(words).

    Args:
      errors: [N] number, word errors of each utterance.
      words: [N] integer, reference words of each utterance.
      seed: of the draws.

    References:
      Bisani and Ney 2004, Bootstrap estimates for confidence intervals in ASR performance evaluation.
    """
    return _quantiles(_resampled_rates(errors, words, seed))


def paired_difference(errors: np.ndarray, other_errors: np.ndarray, words: np.ndarray, *, seed: int = 0) -> Difference:
    """Difference of two systems' WER with its interval, both judged on the same drawn utterances.

    Args:
      errors: [N] number, word errors of the first system on each utterance (or their mean over seeds).
      other_errors: [N] number, those of the second system on the same utterances.
      words: [N] integer, reference words of each utterance.
      seed: of the draws.
    """
    surplus = np.asarray(errors, np.float64) - np.asarray(other_errors, np.float64)  # [N]
    points = 100.0 * surplus.sum() / max(np.sum(words), 1)
    return Difference(float(points), _quantiles(_resampled_rates(surplus, words, seed)))


def _resampled_rates(errors: np.ndarray, words: np.ndarray, seed: int) -> np.ndarray:
    errors, words = np.asarray(errors, np.float64), np.asarray(words, np.float64)
    size = len(words)
    if errors.shape != (size,) or not size:
        raise ValueError(f"errors {errors.shape} and words {words.shape} must be two equal, non-empty [N]")
    generator = np.random.default_rng(seed)
    rates, step = [], max(1, _DRAWS_AT_ONCE // size)
    for start in range(0, NUM_RESAMPLES, step):
        drawn = generator.integers(0, size, [min(step, NUM_RESAMPLES - start), size])  # [R, N]
        rates.append(100.0 * errors[drawn].sum(1) / np.maximum(words[drawn].sum(1), 1.0))  # [R]
    return np.concatenate(rates)


def _quantiles(rates: np.ndarray) -> Interval:
    return Interval(*(float(value) for value in np.quantile(rates, [0.025, 0.975])))
