"""What a score and a difference are worth: intervals, paired tests, what could have been detected, and a verdict.

Every metric is a ratio of sums over scored expressions (a mean is the ratio whose denominator counts), computed per
seed and averaged over seeds, so that it equals the mean of the `results` table. What is decided:

* the cluster is the image: its expressions are resampled together;
* an interval resamples images and, independently, seeds (the pigeonhole bootstrap, Owen 2007,
  https://doi.org/10.1214/07-AOAS122); the seeds' deviations are widened by sqrt(S / (S - 1)), because resampling S
  seeds understates their variance by (S - 1) / S. With one seed the interval speaks of these trained models only;
* a difference is paired: same seeds, same expressions, same resamples for both arms; what only one of them has scored
  is left out, and arms without a common seed are not compared;
* p comes from swapping the two arms within random images, which for a mean flips the sign of per-image differences; it
  is about images, so `better` also asks that the interval, which knows the seeds, excludes zero;
* `equivalent` means that the whole 95% interval lies inside the margin (two one-sided tests at 2.5%);
* a metric without a denominator (no predicted pixel, say) is NaN and is never compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.stats import norm

_NAN = float("nan")
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 4_000
PERMUTATIONS = 9_999


class Verdict(StrEnum):
    """What a comparison with a baseline says."""

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
    """Arm minus baseline on what both have scored, with the 95% interval, its standard error and the p of the swaps."""

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
        """Whether both arms have scored anything in common; without it, every number is NaN."""
        return self.num_seeds > 0

    def minimum_detectable(self, comparisons: int = 1) -> float:
        """The smallest true difference found with 80% power at 5%, the level shared out over the comparisons."""
        return float((norm.ppf(1 - ALPHA / (2 * comparisons)) + norm.ppf(POWER)) * self.standard_error)


NOT_COMPARED = Difference(_NAN, _NAN, _NAN, _NAN, _NAN, num_seeds=0, num_images=0, num_expressions=0)
"""Of two arms that have scored nothing in common."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Numerators and denominators per seed and image, (S, I), over the images of the whole table."""

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
    """Two-sided p of a difference under swaps of the two arms within images, all seeds of an image at once.

    Exact when there are at most PERMUTATIONS + 1 ways to swap, else over PERMUTATIONS random ones.
    """
    apart, apart_below = ours.numerators - theirs.numerators, ours.denominators - theirs.denominators
    matters = ((apart != 0) | (apart_below != 0)).any(axis=0)
    num = int(matters.sum())
    is_exact = 2**num <= PERMUTATIONS + 1
    if is_exact:
        swaps = (np.arange(2**num)[:, None] >> np.arange(num)) & 1
    else:
        swaps = np.random.default_rng([seed, num, 2]).integers(0, 2, size=(PERMUTATIONS, num))
    above, below = (swaps.astype(float) @ moved[:, matters].T for moved in (apart, apart_below))
    left = ratio(ours.numerators.sum(axis=1) - above, ours.denominators.sum(axis=1) - below)
    right = ratio(theirs.numerators.sum(axis=1) + above, theirs.denominators.sum(axis=1) + below)
    swapped = np.abs((left - right).mean(axis=1))
    observed = np.abs((ours.per_seed() - theirs.per_seed()).mean())
    if np.isnan(observed):
        return float("nan")
    num_extreme = np.count_nonzero(~(swapped < observed - 1e-12))  # an undefined swap counts against a difference
    return float(num_extreme / len(swaps) if is_exact else (num_extreme + 1) / (len(swaps) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; NaN stays NaN and is no member of the family."""
    family = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    for rank, (p, place) in enumerate(family):
        largest = max(largest, min(1.0, p * (len(family) - rank)))
        adjusted[place] = largest
    return adjusted


def judge(difference: Difference, adjusted_p: float, margin: float, higher_is_better: bool = True) -> Verdict:
    """One word for a difference; see the module's docstring for the rules."""
    if -margin < difference.low and difference.high < margin:
        return Verdict.EQUIVALENT
    excludes_zero = difference.low > 0 or difference.high < 0
    if not (adjusted_p < ALPHA and excludes_zero and abs(difference.delta) >= margin):
        return Verdict.INCONCLUSIVE
    return Verdict.BETTER if (difference.delta > 0) == higher_is_better else Verdict.WORSE


def is_on_front(points: np.ndarray) -> np.ndarray:
    """Which of the points (..., V, K), every axis to be maximised, no other point dominates; NaN never is."""
    ours, others = points[..., :, None, :], points[..., None, :, :]
    is_dominated = ((others >= ours).all(axis=-1) & (others > ours).any(axis=-1)).any(axis=-1)
    return ~is_dominated & ~np.isnan(points).any(axis=-1)


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The central 95% of the replicates that are defined; NaN when none is."""
    defined = replicates[np.isfinite(replicates)]
    if defined.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)
