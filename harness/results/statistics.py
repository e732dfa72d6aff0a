"""Statistics of scores and differences: intervals, paired tests, minimum detectable effects and verdicts.

Every metric is a ratio of sums over samples (for a mean, the denominator is the number of samples). It is computed per
seed and averaged over seeds, so it equals the mean of the results table. Rules:

- The image is the cluster: its expressions are resampled together.
- An interval resamples images and, independently, seeds (the pigeonhole bootstrap, Owen 2007,
  https://doi.org/10.1214/07-AOAS122). Deviations of seeds are scaled by sqrt(S / (S - 1)), because resampling S seeds
  underestimates their variance by the factor (S - 1) / S. With one seed, the interval covers only these trained models.
- A difference is paired: both arms use the same seeds, samples and resamples. Samples of only one arm are left out, and
  arms without a common seed are not compared.
- p comes from a permutation test that swaps the two arms within random images; for a mean, this flips the sign of
  per-image differences. It accounts for images only. Therefore `better` and `worse` also require that the interval,
  which includes seeds, excludes 0, and that the difference reaches the margin.
- `equivalent` means that the whole 95% interval lies within the margin (two one-sided tests at 2.5%).
- A ratio with denominator 0 (for example without predicted pixels) is NaN and is never compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

_NAN = float("nan")
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 4_000
PERMUTATIONS = 9_999


class Verdict(StrEnum):
    """The verdict of a comparison with a baseline."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score with its 95% interval; `seed_sd` is the standard deviation over seeds, NaN with fewer than two."""

    value: float
    low: float
    high: float
    seed_sd: float
    num_seeds: int
    num_images: int
    num_expressions: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Arm minus baseline over common samples: 95% interval, standard error and p of the permutation test."""

    delta: float
    low: float
    high: float
    standard_error: float
    p: float
    num_seeds: int
    num_images: int
    num_expressions: int

    @property
    def is_compared(self) -> bool:
        """Whether both arms have a common sample; if not, every number is NaN."""
        return self.num_seeds > 0

    def minimum_detectable(self, comparisons: int = 1) -> float:
        """The smallest true difference found with 80% power at level 5%, divided by the number of comparisons."""
        return float((ndtri(1 - ALPHA / (2 * comparisons)) + ndtri(POWER)) * self.standard_error)


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a difference between two budgets, with its 95% interval; paired by seed, image and expression."""

    delta: float
    low: float
    high: float


NOT_COMPARED = Difference(_NAN, _NAN, _NAN, _NAN, _NAN, num_seeds=0, num_images=0, num_expressions=0)
"""The difference of two arms without a common sample."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Numerators and denominators per seed and image, (S, I), over all images of the table."""

    numerators: np.ndarray
    denominators: np.ndarray
    num_expressions: int

    @property
    def num_seeds(self) -> int:
        return len(self.numerators)

    @property
    def has_image(self) -> np.ndarray:
        return (self.denominators != 0).any(axis=0)

    def per_seed(self) -> np.ndarray:
        return ratio(self.numerators.sum(axis=1), self.denominators.sum(axis=1))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    return np.divide(numerators, denominators, out=np.full(np.shape(numerators), np.nan), where=denominators > 0)


def swap_test(ours: Sums, theirs: Sums, seed: int = 0) -> float:
    """Two-sided p of a difference under swaps of the two arms within images, for all seeds of an image together.

    Exact if there are at most PERMUTATIONS + 1 swaps, otherwise over PERMUTATIONS random ones.
    """
    numerator_difference, denominator_difference = (
        ours.numerators - theirs.numerators,
        ours.denominators - theirs.denominators,
    )
    differs = ((numerator_difference != 0) | (denominator_difference != 0)).any(axis=0)
    num = int(differs.sum())
    is_exact = 2**num <= PERMUTATIONS + 1
    swaps = _swaps(num, is_exact, seed).astype(float)
    above, below = (_swapped(swaps, part[:, differs]) for part in (numerator_difference, denominator_difference))
    left = ratio(ours.numerators.sum(axis=1) - above, ours.denominators.sum(axis=1) - below)
    right = ratio(theirs.numerators.sum(axis=1) + above, theirs.denominators.sum(axis=1) + below)
    swapped = np.abs((left - right).mean(axis=1))
    observed = np.abs((ours.per_seed() - theirs.per_seed()).mean())
    if np.isnan(observed):
        return float("nan")
    num_extreme = np.count_nonzero(~(swapped < observed - 1e-12))  # an undefined swap counts as extreme
    return float(num_extreme / len(swaps) if is_exact else (num_extreme + 1) / (len(swaps) + 1))


@lru_cache(maxsize=4)
def _swaps(num: int, is_exact: bool, seed: int) -> np.ndarray:
    """Which of so many images are swapped in each permutation, (P, num) of 0 and 1."""
    if is_exact:
        return ((np.arange(2**num)[:, None] >> np.arange(num)) & 1).astype(np.int8)
    return np.random.default_rng([seed, num, 2]).integers(0, 2, size=(PERMUTATIONS, num)).astype(np.int8)


def _swapped(swaps: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Summed differences (S, num) of the swapped images in each permutation, (P, S)."""
    if not differences.any():  # the denominators of a mean
        return np.zeros((len(swaps), len(differences)))
    return swaps @ differences.T


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the same order; NaN stays NaN and is not part of the family."""
    family = sorted((p, index) for index, p in enumerate(p_values) if not np.isnan(p))
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    for rank, (p, index) in enumerate(family):
        largest = max(largest, min(1.0, p * (len(family) - rank)))
        adjusted[index] = largest
    return adjusted


def judge(difference: Difference, adjusted_p: float, margin: float, higher_is_better: bool = True) -> Verdict:
    """The verdict on a difference; the module docstring has the rules."""
    if -margin < difference.low and difference.high < margin:
        return Verdict.EQUIVALENT
    excludes_zero = difference.low > 0 or difference.high < 0
    if not (adjusted_p < ALPHA and excludes_zero and abs(difference.delta) >= margin):
        return Verdict.INCONCLUSIVE
    return Verdict.BETTER if (difference.delta > 0) == higher_is_better else Verdict.WORSE


def is_on_front(quality: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Which points are not dominated: no other one has at least their quality at no higher cost, and differs in one.

    Args:
        quality: (..., V), higher is better; points with NaN are not on the front.
        cost: (V,), lower is better.

    Returns:
        Booleans, (..., V).
    """
    front = np.zeros(quality.shape, dtype=bool)
    best_cheaper = np.full((*quality.shape[:-1], 1), -np.inf)
    for value in np.unique(cost[~np.isnan(cost)]):
        same = np.flatnonzero(cost == value)
        level = quality[..., same]
        best = np.fmax.reduce(level, axis=-1, keepdims=True)
        front[..., same] = (level > best_cheaper) & (level == best)
        best_cheaper = np.fmax(best_cheaper, best)
    return front


def intervals(replicates: np.ndarray) -> list[tuple[float, float]]:
    """`interval` of each column of replicates, (RESAMPLES, V)."""
    if replicates.shape[1] == 0 or not np.isfinite(replicates).all():
        return [interval(column) for column in replicates.T]
    low, high = np.quantile(replicates, [ALPHA / 2, 1 - ALPHA / 2], axis=0).tolist()
    return list(zip(low, high, strict=True))


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The central 95% of the finite replicates; NaN without any."""
    defined = replicates[np.isfinite(replicates)]
    if defined.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)
