r"""How far a word error rate, or a difference of two, may be due to who was recorded and to the seeds of training.

The units of a test set are its speakers: what one speaker says is not independent. Where fewer than two speakers are
known, they are its utterances. With \(E_g\) errors (a mean over runs; in a difference, those of the first system minus
those of the second) and \(W_g\) reference words of unit \(g\) of \(G\),

\[ \theta = \sum_g E_g / \sum_g W_g, \qquad
   s^2 = \frac{G}{G-1} \sum_g (E_g - \theta W_g)^2 / \Big(\sum_g W_g\Big)^2 . \]

**Bootstrap.** \(G\) units are drawn with replacement 10,000 times, each drawing with its own \(\theta^*\) and \(s^*\).
The interval is \(\theta \pm q s\), where \(q\) is the 95 % quantile of \(|\theta^* - \theta| / s^*\), and at most twice
the quantile of Student's t, as drawings of few distinct units have no scatter. For a word error rate all of this is
done with its square root, so that the interval stays above zero and is as skewed as error rates are. By simulation
(units of unequal size, logit-normal effects) this symmetric studentised interval covered 94 to 97 % at 20 and 50
speakers, where quantiles of \(\theta^*\) covered 91 to 93 % and BCa no more. At six speakers it covered 95 % too, but
that leans on effects like those simulated.

**Few units.** Below ten of them a t-interval, \(\theta \pm t_{G-1} s\), is given as well (at six it covered 93 %).

**Seeds.** Three runs are too few to be resampled (their bootstrap has a scatter of two thirds). With \(K\) runs of
word error rates \(\theta_k\) the seeds have a t-interval of their own, \(\theta \pm t_{K-1} \mathrm{sd}(\theta_k) /
\sqrt K\), and the distances \(d\) of both intervals' ends from \(\theta\) are joined to
\(\sqrt{d_\text{units}^2 + d_\text{seeds}^2}\). What a speaker and a seed do together counts in both, which makes the
interval wide rather than narrow (as in the pigeonhole bootstrap): simulated with 20 speakers it covered 98 to 99.5 % of
two seeds, 97 to 98.5 % of three and 96 to 97 % of five.

References:
  Bisani and Ney 2004, Bootstrap estimates for confidence intervals in ASR performance evaluation.
  Hall 1988, On symmetric bootstrap confidence intervals; Efron and Tibshirani 1993, An introduction to the bootstrap.
  Owen 2007, The pigeonhole bootstrap: crossed factors such as speakers and seeds.
  Zou and Donner 2008, Construction of confidence limits about effect measures: the joint distance.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 10_000
FEW_UNITS = 10  # below, bootstrap intervals may be too narrow to trust
FEWEST_UNITS = 5  # below, no difference is called clear
_LEVEL = 0.95
_DRAWS_AT_ONCE = 2_000_000  # units drawn at once; bounds the memory to about 100 MB


class Interval(NamedTuple):
    """Ends of a 95 % interval, in WER points (percent)."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A word error rate, or the first system's minus the second's, and what else it could have been.

    Attributes:
      points: on the test set as it is, in WER points; a negative difference says that the first system is better.
      interval: 95 %, by bootstrap over `units` (and over seeds, if there are several); None of a single unit.
      unit: `speakers` or `utterances`: what was taken to be independent.
      units: how many of them there are.
      t_interval: 95 %, by Student's t over the same units, where there are fewer than ten.
    """

    points: float
    interval: Interval | None
    unit: str
    units: int
    t_interval: Interval | None = None

    @property
    def is_clear(self) -> bool:
        """Whether every interval excludes zero, and there are at least five units to say so."""
        found = [interval for interval in (self.interval, self.t_interval) if interval]
        return self.units >= FEWEST_UNITS and all(interval.excludes_zero for interval in found)


class _Scale(NamedTuple):
    """Where an estimate is near normal: the way there, its derivative, and the way back."""

    there: Callable
    slope: Callable
    back: Callable


_PLAIN = _Scale(lambda x: x, np.ones_like, lambda y: y)
_ROOT = _Scale(np.sqrt, lambda x: 0.5 / np.sqrt(x), lambda y: np.maximum(y, 0.0) ** 2)


class _Units(NamedTuple):
    """Errors and words, [G] float64 each, summed over every unit."""

    name: str
    errors: np.ndarray
    words: np.ndarray


def word_error_rate(errors, words, speakers: Sequence[str] | None = None, *, seed: int = 0) -> Estimate:
    """A WER with its 95 % interval; see the module for how it is made.

    Args:
      errors: [N] or, for runs that differ in their seed, [K, N]: word errors of each utterance.
      words: [N] integer, reference words of each utterance.
      speakers: who speaks each utterance, empty where unknown; None if nobody is known.
      seed: random seed of the drawings.
    """
    errors, words = _checked(errors, words)
    return _estimate(errors.mean(0), words, speakers, [_rates(errors, words)], _ROOT, seed)


def paired_difference(errors, other_errors, words, speakers: Sequence[str] | None = None, *, seed: int = 0) -> Estimate:
    """Difference of two systems' WER with its interval, both judged on the same drawn units.

    Runs are paired in their order where both systems have as many, as runs of one seed share their data and teachers;
    else the seeds of each system scatter by themselves, and those of a system of one run are not covered.

    Args:
      errors: [N] or [K, N], word errors of the first system on each utterance.
      other_errors: [N] or [L, N], those of the second system on the same utterances.
      words: [N] integer, reference words of each utterance.
      speakers: who speaks each utterance, empty where unknown; None if nobody is known.
      seed: random seed of the drawings.
    """
    (errors, words), (others, _) = _checked(errors, words), _checked(other_errors, words)
    surplus = errors.mean(0) - others.mean(0)  # [N]
    paired = len(errors) == len(others)
    rates = [_rates(errors - others, words)] if paired else [_rates(errors, words), _rates(others, words)]
    return _estimate(surplus, words, speakers, rates, _PLAIN, seed)


def t_quantile(degrees: int, level: float = _LEVEL) -> float:
    """The t that Student's distribution of so many degrees of freedom keeps within [-t, t] at `level`, by bisection.

    References:
      Abramowitz and Stegun 1964, 26.7.3 and 26.7.4: for whole degrees of freedom the distribution is a finite sum.
    """
    return _t_quantile(degrees, level)


@functools.lru_cache(maxsize=1024)
def _t_quantile(degrees, level):
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(degrees))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, degrees) < level else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _t_mass(angle: float, degrees: int) -> float:
    """Probability that |t| is at most `tan(angle) sqrt(degrees)`."""
    odd = degrees % 2
    steps = np.arange(1 + odd, degrees - 2, 2)
    factors = steps / (steps + 1.0) * math.cos(angle) ** 2
    total = (1.0 + np.cumprod(factors).sum()) * math.sin(angle)
    if not odd:
        return total
    return 2.0 / math.pi * (angle + (total * math.cos(angle) if degrees > 1 else 0.0))


def _checked(errors, words) -> tuple[np.ndarray, np.ndarray]:
    errors, words = np.atleast_2d(np.asarray(errors, np.float64)), np.asarray(words, np.float64)
    if words.ndim != 1 or not words.size or errors.shape[1:] != words.shape or errors.ndim != 2:
        raise ValueError(f"errors {errors.shape} and words {words.shape} must be equal and not empty: [K, N] and [N]")
    return errors, words


def _rates(errors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """[K] WER of each run in percent."""
    return 100.0 * errors.sum(-1) / max(words.sum(), 1.0)


def _estimate(errors, words, speakers, rates: Iterable[np.ndarray], scale: _Scale, seed: int) -> Estimate:
    units = _sum_over_units(errors, words, speakers)
    points, count = float(_rates(errors, words)), len(units.words)
    if count < 2:
        return Estimate(points, None, units.name, count)
    spread = _spread(units)
    quantile = t_quantile(count - 1)
    drawn = min(_studentised_quantile(units, scale, seed), 2.0 * quantile)
    of_seeds = [_of_seeds(points, runs) for runs in rates if len(runs) > 1]
    interval = _join(points, [_around(points, drawn * spread, scale), *of_seeds])
    by_t = _join(points, [_around(points, quantile * spread, scale), *of_seeds]) if count < FEW_UNITS else None
    if scale is _ROOT:
        interval, by_t = _above_zero(interval), by_t and _above_zero(by_t)
    return Estimate(points, interval, units.name, count, by_t)


def _sum_over_units(errors, words, speakers) -> _Units:
    """Speakers where two or more are known (those without a name count as one), else utterances."""
    if speakers is not None and len(speakers) != len(words):
        raise ValueError(f"{len(speakers)} speakers of {len(words)} utterances")
    names, unit = np.unique(["" for _ in words] if speakers is None else list(speakers), return_inverse=True)
    if len(names) < 2:
        return _Units("utterances", errors, words)
    return _Units("speakers", *(np.bincount(unit, weights=values) for values in (errors, words)))


def _spread(units: _Units) -> float:
    """Standard error of the rate in percent, linearised."""
    rate = units.errors.sum() / max(units.words.sum(), 1.0)
    count = len(units.words)
    squares = np.sum((units.errors - rate * units.words) ** 2) * count / (count - 1)
    return 100.0 * float(np.sqrt(squares)) / max(units.words.sum(), 1.0)


def _studentised_quantile(units: _Units, scale: _Scale, seed: int) -> float:
    """95 % quantile, over drawings, of the distance from the estimate in standard errors of the drawing."""
    errors, words = units.errors, np.maximum(units.words, 1e-9)
    count = len(words)
    moments = np.stack([errors, words, errors**2, errors * words, words**2], -1)  # [G, 5]
    sums = np.concatenate([counts @ moments for counts in _drawings(count, seed)])  # [R, 5]
    rates = sums[:, 0] / sums[:, 1]
    squares = sums[:, 2] - 2 * rates * sums[:, 3] + rates**2 * sums[:, 4]
    spreads = np.sqrt(np.maximum(squares, 0.0) * count / (count - 1)) / sums[:, 1]
    away = np.abs(scale.there(rates) - scale.there(errors.sum() / words.sum()))
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = away / (spreads * scale.slope(rates))
    # A drawing of one unit alone has no scatter: it is where the estimate is, or infinitely far.
    distances = np.where(away < 1e-9, 0.0, np.nan_to_num(distances, nan=np.inf, posinf=np.inf))
    return float(np.quantile(distances, _LEVEL, method="inverted_cdf"))


def _drawings(count: int, seed: int) -> Iterable[np.ndarray]:
    """How often every unit was drawn, [R, G] float64, in blocks."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, NUM_RESAMPLES, step):
        rows = min(step, NUM_RESAMPLES - start)
        drawn = generator.integers(0, count, [rows, count]) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _around(points: float, distance: float, scale: _Scale) -> Interval:
    if not distance:
        return Interval(points, points)
    middle, distance = scale.there(points), distance * float(scale.slope(np.float64(points)))
    return Interval(float(scale.back(middle - distance)), float(scale.back(middle + distance)))


def _of_seeds(points: float, rates: np.ndarray) -> Interval:
    distance = t_quantile(len(rates) - 1) * float(np.std(rates, ddof=1)) / math.sqrt(len(rates))
    return Interval(points - distance, points + distance)


def _join(points: float, intervals: Sequence[Interval]) -> Interval:
    """The interval whose ends are as far from the estimate as independent distances add up to."""
    if len(intervals) == 1:
        return intervals[0]
    return Interval(
        points - math.hypot(*(points - interval.low for interval in intervals)),
        points + math.hypot(*(interval.high - points for interval in intervals)),
    )


def _above_zero(interval: Interval) -> Interval:
    return Interval(max(interval.low, 0.0), interval.high)
