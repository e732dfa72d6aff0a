"""Scores and comparisons of the finished cells of a study, over seeds and images for every variant.

A score is computed per seed and averaged over seeds; `harness.results.statistics` documents intervals and tests.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from harness.results.coded_samples import CodedSamples, sums_by_image
from harness.results.labels import point_label
from harness.results.metrics import METRICS
from harness.results.statistics import (
    NOT_COMPARED,
    RESAMPLES,
    Change,
    Difference,
    Estimate,
    Sums,
    interval,
    intervals,
    is_on_front,
    ratio,
    swap_test,
)

_CONTROLS = tuple(dict.fromkeys(column for metric in METRICS.values() for column in metric.chance))
_COLUMNS_AT_ONCE = 512
"""Pairs of variant and seed that are resampled together."""
_Part = tuple[str, str | None, str | None]
"""Metric, family and domain."""


def variant_name(arm: str, point: str) -> str:
    """The name of an arm with its search point: `sspe (blocks=3, queries=4)`."""
    settings = json.loads(point or "{}")
    if not settings:
        return arm
    return f"{arm} ({point_label(settings)})"


def _points(results: pd.DataFrame) -> Iterator[tuple[str, str]]:
    return zip(results["arm"], results["point"], strict=True)


def seeds_in_words(seeds: Sequence[int]) -> str:
    """`seed 3`, or `seeds 0, 1 and 2`."""
    *others, last = map(str, seeds)
    return f"seeds {', '.join(others)} and {last}" if others else f"seed {last}"


def _estimate(sums: Sums, low: float, high: float) -> Estimate:
    per_seed = sums.per_seed()
    return Estimate(
        value=float(per_seed.mean()),
        low=low,
        high=high,
        seed_sd=float(per_seed.std(ddof=1)) if len(per_seed) > 1 else float("nan"),
        num_seeds=sums.num_seeds,
        num_images=int(sums.has_image.sum()),
        num_expressions=sums.num_expressions,
    )


def _parts(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    return sums.numerators, sums.denominators


class ScoreTable:
    """Scores and compares the finished cells of a study; a *variant* is an arm at one search point.

    Args:
        results: the result table.
        samples: the samples table.
        seed: seed of the resampling; equal tables and seeds give equal numbers.
    """

    def __init__(self, results: pd.DataFrame, samples: pd.DataFrame, seed: int = 0) -> None:
        self._seed = seed
        self._estimates: dict[_Part, dict[str, Estimate]] = {}
        self._families: dict[str, list[str]] = {}
        done = results[results["status"] == "done"]
        names = dict(zip(done["cell"], (variant_name(arm, point) for arm, point in _points(done)), strict=True))
        codes, cells = pd.factorize(samples["cell"])
        scored = {names[cell] for cell in cells if cell in names}
        self.variants = [variant for variant in dict.fromkeys(names.values()) if variant in scored]
        index = {variant: code for code, variant in enumerate(self.variants)}
        of_cells = np.array([index.get(names.get(cell, ""), -1) for cell in cells], dtype=np.int64)
        of_samples = of_cells[codes]
        if (of_samples < 0).any():
            samples, of_samples = samples[of_samples >= 0], of_samples[of_samples >= 0]
        self._samples = CodedSamples(samples, of_samples, self.variants)
        self._points = {variant_name(arm, point): (arm, json.loads(point or "{}")) for arm, point in _points(done)}
        controls = done.reindex(columns=list(_CONTROLS)).astype(float)
        self._controls = controls.groupby(done["cell"].map(names)).mean()
        self.images = self._samples.images
        self.domains = sorted({*samples["domain"].unique()} - {""})

    def families_of(self, metric: str) -> list[str]:
        """The families of the samples that a metric applies to, in order of appearance."""
        if metric not in self._families:
            self._families[metric] = self._samples.families(metric)
        return self._families[metric]

    def arm_of(self, variant: str) -> str:
        """The arm of a variant."""
        return self._points[variant][0]

    def variants_of(self, arm: str, at: Mapping[str, object] | None = None) -> list[str]:
        """The variants of an arm; `at` selects the search points with these settings if the arm has a search."""
        kept = []
        for variant in self.variants:
            name, point = self._points[variant]
            if name == arm and (not point or all(point.get(path) == value for path, value in (at or {}).items())):
                kept.append(variant)
        return kept

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds with which a variant was scored."""
        return self._samples.seeds[variant]

    def common_seeds(self, variant: str, baseline: str) -> list[int]:
        """The seeds with which both variants were scored."""
        return sorted({*self.seeds_of(variant)} & {*self.seeds_of(baseline)})

    def why_not_compared(self, variant: str, baseline: str) -> str:
        """The reason why two variants cannot be compared."""
        if self.common_seeds(variant, baseline):
            return f"no expression was scored by both {variant} and {baseline}"
        ours, theirs = (f"{name} has {seeds_in_words(self.seeds_of(name))}" for name in (variant, baseline))
        return f"no seed in common: {ours}, {theirs}"

    def is_above_chance(self, variant: str, metric: str = "giou") -> bool:
        """Whether a variant's interval lies above the score of a model that ignores the image; True if that is unknown.

        Chance is the highest of the metric's controls. For metrics without controls, that of gIoU is used.
        """
        metric = metric if METRICS[metric].chance else "giou"
        chance = self._controls.loc[variant, list(METRICS[metric].chance)].max()
        return not self.estimate(variant, metric).low <= chance

    def estimate(
        self, variant: str, metric: str = "giou", family: str | None = None, domain: str | None = None
    ) -> Estimate:
        """The score of one variant with its interval, over all samples or those of a family or a domain."""
        part = (metric, family, domain)
        if part not in self._estimates:
            self._estimates[part] = self._estimate_all(self._samples.sums(*part))
        return self._estimates[part][variant]

    def _estimate_all(self, sums: Mapping[str, Sums]) -> dict[str, Estimate]:
        """The estimate of each variant."""
        found = {}
        for names, replicates in self._replicates_by_seeds(sums):
            ends = intervals(replicates)
            found.update({name: _estimate(sums[name], *pair) for name, pair in zip(names, ends, strict=True)})
        nan = float("nan")
        empty = Estimate(nan, nan, nan, nan, num_seeds=0, num_images=0, num_expressions=0)
        return {name: found.get(name, empty) for name in sums}

    def replicates(self, variant: str, metric: str = "giou") -> np.ndarray:
        """Bootstrap replicates of a score, (RESAMPLES,); variants with equally many seeds share the resamples."""
        return self._replicates([self._samples.sums(metric)[variant]])[:, 0]

    def front_share(self, costs: dict[str, float], metric: str = "giou") -> dict[str, float]:
        """Share of resamples in which a variant is on the Pareto front of metric (up) and cost (down)."""
        variants = [variant for variant in self.variants if np.isfinite(costs[variant])]
        if not variants:
            return {}
        quality = np.full((RESAMPLES, len(variants)), np.nan)
        sums = self._samples.sums(metric)
        for names, replicates in self._replicates_by_seeds({variant: sums[variant] for variant in variants}):
            quality[:, [variants.index(name) for name in names]] = replicates
        sign = 1.0 if METRICS[metric].higher_is_better else -1.0
        front = is_on_front(sign * quality, np.array([costs[variant] for variant in variants]))
        return dict(zip(variants, front.mean(axis=0).tolist(), strict=True))

    def compare(
        self,
        variant: str,
        baseline: str,
        metric: str = "giou",
        family: str | None = None,
        domain: str | None = None,
    ) -> Difference:
        """Variant minus baseline over the seeds and samples that both have, all or those of a family or domain.

        Returns:
            The difference; `NOT_COMPARED` if they have no sample in common.
        """
        left, right = self._samples.common_sums(variant, baseline, metric, family, domain)
        if not left.num_seeds:
            return NOT_COMPARED
        replicates = self._replicates([left])[:, 0] - self._replicates([right])[:, 0]
        low, high = interval(replicates)
        return Difference(
            delta=float((left.per_seed() - right.per_seed()).mean()),
            low=low,
            high=high,
            standard_error=float(np.std(replicates, ddof=1)),
            p=swap_test(left, right, self._seed),
            num_seeds=left.num_seeds,
            num_images=int((left.has_image | right.has_image).sum()),
            num_expressions=left.num_expressions,
        )

    def change_since(
        self,
        earlier: "ScoreTable",
        variant: str,
        baseline: str,
        metric: str = "giou",
        family: str | None = None,
        domain: str | None = None,
    ) -> Change | None:
        """Variant minus baseline here, minus the same in an earlier table, over the samples that all four have.

        Returns:
            None if they have no sample in common.
        """
        chosen = (metric, family, domain)
        terms = [(self, variant, 1), (self, baseline, -1), (earlier, variant, -1), (earlier, baseline, 1)]
        return self._combined(terms, chosen)

    def score_change_since(self, earlier: "ScoreTable", variant: str, metric: str = "giou") -> Change | None:
        """The score of a variant here minus that in an earlier table, over the samples that both have."""
        return self._combined([(self, variant, 1), (earlier, variant, -1)], (metric, None, None))

    def _combined(
        self, terms: Sequence[tuple["ScoreTable", str, int]], chosen: tuple[str, str | None, str | None]
    ) -> Change | None:
        """A signed sum of scores over the samples that all terms have, with resamples in common."""
        if any(name not in table.variants for table, name, _ in terms):
            return None
        scores = [table._samples.scores(name, *chosen) for table, name, _ in terms]
        common = scores[0].index
        for each in scores[1:]:
            common = common.intersection(each.index)
        if common.empty:
            return None
        sums = [sums_by_image(each.loc[common], self.images) for each in scores]
        signs = [sign for *_, sign in terms]
        value = sum(sign * float(each.per_seed().mean()) for sign, each in zip(signs, sums, strict=True))
        replicates = self._replicates(sums) @ np.array(signs, float)
        return Change(value, *interval(replicates))

    def _replicates_by_seeds(self, sums: Mapping[str, Sums]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Variants with equally many seeds, some at a time, and their replicates, (RESAMPLES, V)."""
        by_seeds: dict[int, list[str]] = {}
        for name, one in sums.items():
            by_seeds.setdefault(one.num_seeds, []).append(name)
        by_seeds.pop(0, None)
        for num_seeds, names in by_seeds.items():
            step = max(1, _COLUMNS_AT_ONCE // num_seeds)
            for group in (names[start : start + step] for start in range(0, len(names), step)):
                yield group, self._replicates([sums[name] for name in group])

    def _replicates(self, sums: Sequence[Sums]) -> np.ndarray:
        """Replicates of variants with equally many seeds, (RESAMPLES, V)."""
        images, seeds = self._image_counts, self._seed_weights(sums[0].num_seeds)
        above, below = (images @ np.concatenate(parts).T for parts in zip(*map(_parts, sums), strict=True))
        ratios = ratio(above, below).reshape(RESAMPLES, len(sums), -1)
        return (ratios * seeds[:, None, :]).mean(axis=2)

    @cached_property
    def _image_counts(self) -> np.ndarray:
        """How often each image occurs in each resample, (RESAMPLES, I)."""
        num = len(self.images)
        generator = np.random.default_rng([self._seed, num])
        return generator.multinomial(num, np.full(num, 1 / num), size=RESAMPLES).astype(float)

    def _seed_weights(self, num: int) -> np.ndarray:
        """The weight of each seed in each resample, (RESAMPLES, S); the weights of a resample sum to S."""
        if num == 1:
            return np.ones((RESAMPLES, 1))
        counts = np.random.default_rng([self._seed, num, 1]).multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
        return 1 + (counts - 1) * np.sqrt(num / (num - 1))
