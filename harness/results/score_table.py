"""Scores and comparisons of the finished cells of a study, over seeds and images for every variant.

A score is computed per seed and averaged over seeds; `harness.results.statistics` documents intervals and tests.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from harness.results.columns import SAMPLE_COLUMNS
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
    is_on_front,
    ratio,
    swap_test,
)

_CONTROLS = tuple(dict.fromkeys(column for metric in METRICS.values() for column in metric.chance))
_KEYS = ["seed", "image_id", "expression_id"]


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


class ScoreTable:
    """Scores and compares the finished cells of a study; a *variant* is an arm at one search point.

    Args:
        results: the result table.
        samples: the samples table.
        seed: seed of the resampling; equal tables and seeds give equal numbers.
    """

    def __init__(self, results: pd.DataFrame, samples: pd.DataFrame, seed: int = 0) -> None:
        self._seed = seed
        self._estimates: dict[tuple[str, str, str | None, str | None], Estimate] = {}
        done = results[results["status"] == "done"]
        names = dict(zip(done["cell"], (variant_name(arm, point) for arm, point in _points(done)), strict=True))
        samples = samples[samples["cell"].isin(names)].reindex(columns=list(SAMPLE_COLUMNS))
        samples = samples.assign(variant=samples["cell"].map(names))
        self.images = sorted(samples["image_id"].unique())
        self._image_codes = {image: code for code, image in enumerate(self.images)}
        self._samples = dict(tuple(samples.groupby("variant", sort=False)))
        self._points = {variant_name(arm, point): (arm, json.loads(point or "{}")) for arm, point in _points(done)}
        self.variants = [variant for variant in dict.fromkeys(names.values()) if variant in self._samples]
        controls = done.reindex(columns=list(_CONTROLS)).astype(float)
        self._controls = controls.groupby(done["cell"].map(names)).mean()
        self.domains = sorted({*samples["domain"]} - {""})

    def families_of(self, metric: str) -> list[str]:
        """The families of the samples that a metric applies to, in order of appearance."""
        found = dict.fromkeys(
            family for samples in self._samples.values() for family in METRICS[metric].select(samples)["family"]
        )
        return [family for family in found if isinstance(family, str)]

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
        return sorted(self._samples[variant]["seed"].unique().tolist())

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
        key = (variant, metric, family, domain)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(*key)
        return self._estimates[key]

    def _estimate(self, variant: str, metric: str, family: str | None, domain: str | None) -> Estimate:
        scores = self._scores(variant, metric, family, domain)
        if scores.empty:
            nan = float("nan")
            return Estimate(nan, nan, nan, nan, num_seeds=0, num_images=0, num_expressions=0)
        sums = self._sums(scores)
        per_seed = sums.per_seed()
        low, high = interval(self._replicates(sums))
        return Estimate(
            value=float(per_seed.mean()),
            low=low,
            high=high,
            seed_sd=float(per_seed.std(ddof=1)) if len(per_seed) > 1 else float("nan"),
            num_seeds=sums.num_seeds,
            num_images=int(sums.has_image.sum()),
            num_expressions=sums.num_expressions,
        )

    def replicates(self, variant: str, metric: str = "giou") -> np.ndarray:
        """Bootstrap replicates of a score, (RESAMPLES,); variants with equally many seeds share the resamples."""
        return self._replicates(self._sums(self._scores(variant, metric)))

    def front_share(self, costs: dict[str, float], metric: str = "giou") -> dict[str, float]:
        """Share of resamples in which a variant is on the Pareto front of metric (up) and cost (down)."""
        variants = [variant for variant in self.variants if np.isfinite(costs[variant])]
        if not variants:
            return {}
        quality = np.stack([self.replicates(variant, metric) for variant in variants], axis=1)
        sign = 1.0 if METRICS[metric].higher_is_better else -1.0
        cost = np.broadcast_to([costs[variant] for variant in variants], quality.shape)
        front = is_on_front(np.stack([sign * quality, -cost], axis=-1))
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
        ours, theirs = (self._scores(name, metric, family, domain) for name in (variant, baseline))
        both = ours.merge(theirs, on=_KEYS, suffixes=("", "_theirs"))
        if both.empty:
            return NOT_COMPARED
        theirs = both[[*_KEYS, "numerator_theirs", "denominator_theirs"]]
        left, right = self._sums(both), self._sums(theirs.rename(columns=lambda name: name.removesuffix("_theirs")))
        replicates = self._replicates(left) - self._replicates(right)
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
        scores = [table._scores(name, *chosen).set_index(_KEYS) for table, name, _ in terms]
        common = scores[0].index
        for each in scores[1:]:
            common = common.intersection(each.index)
        if common.empty:
            return None
        sums = [self._sums(each.loc[common].reset_index()) for each in scores]
        signs = [sign for *_, sign in terms]
        value = sum(sign * float(each.per_seed().mean()) for sign, each in zip(signs, sums, strict=True))
        replicates = np.sum([sign * self._replicates(each) for sign, each in zip(signs, sums, strict=True)], axis=0)
        return Change(value, *interval(replicates))

    def _scores(self, variant: str, metric: str, family: str | None = None, domain: str | None = None) -> pd.DataFrame:
        samples = METRICS[metric].select(self._samples[variant])
        if family is not None:
            samples = samples[samples["family"] == family]
        if domain is not None:
            samples = samples[samples["domain"] == domain]
        numerator, denominator = METRICS[metric].parts(samples)
        return samples[_KEYS].assign(numerator=numerator.astype(float), denominator=denominator.astype(float))

    def _sums(self, scores: pd.DataFrame) -> Sums:
        seeds = sorted(scores["seed"].unique())
        shape = (len(seeds), len(self.images))
        rows = scores["seed"].map({seed: row for row, seed in enumerate(seeds)}).to_numpy(dtype=int)
        flat_index = rows * shape[1] + scores["image_id"].map(self._image_codes).to_numpy(dtype=int)
        numerators, denominators = (
            np.bincount(flat_index, weights=scores[part], minlength=shape[0] * shape[1]).reshape(shape)
            for part in ("numerator", "denominator")
        )
        return Sums(numerators, denominators, num_expressions=len(scores[_KEYS[1:]].drop_duplicates()))

    def _replicates(self, sums: Sums) -> np.ndarray:
        images, seeds = self._image_counts, self._seed_weights(sums.num_seeds)
        ratios = ratio(images @ sums.numerators.T, images @ sums.denominators.T)
        return (ratios * seeds).mean(axis=1)

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
