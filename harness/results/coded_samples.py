"""Samples with integer codes of variant, seed, image and expression, so that sums over all variants are one pass."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from harness.results.columns import SAMPLE_COLUMNS
from harness.results.metrics import METRICS
from harness.results.statistics import Sums

_MAX_KEPT = 3
"""Metrics whose parts are kept; each takes two numbers per sample."""
_UNUSED = ("cell", "arm", "text", "split", "generated_text", "references", "prediction_rle", "target_rle")
_USED = [column for column in SAMPLE_COLUMNS if column not in _UNUSED]


class CodedSamples:
    """The samples of some variants.

    Args:
        samples: one row per sample of these variants.
        variants: the variant of each row, as its index in `names`.
        names: of the variants.
    """

    def __init__(self, samples: pd.DataFrame, variants: np.ndarray, names: Sequence[str]) -> None:
        self._samples = samples.reindex(columns=_USED).reset_index(drop=True)
        self._index = {name: index for index, name in enumerate(names)}
        self._variants = variants.astype(np.int64)
        self._seeds, self._seed_values = _codes(samples["seed"])
        self._images, self.images = _codes(samples["image_id"])
        expressions, found = _codes(samples["expression_id"])
        self._queries, queries = pd.factorize(self._images * max(len(found), 1) + expressions)
        self._num_queries = len(queries)
        self._parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @cached_property
    def seeds(self) -> dict[str, list[int]]:
        """The seeds of each variant, sorted."""
        is_there = self._is_there(np.arange(len(self._samples)))
        return {name: [self._seed_values[s] for s in np.flatnonzero(is_there[v])] for name, v in self._index.items()}

    def families(self, metric: str) -> list[str]:
        """The families of the samples that a metric applies to, variant by variant in order of appearance."""
        chosen = METRICS[metric].select(self._samples[["scoring", "family"]])
        pairs = pd.DataFrame({"variant": self._variants[chosen.index], "family": chosen["family"]}).drop_duplicates()
        appearance = pd.unique(self._variants)
        place = np.empty(len(self._index), int)
        place[appearance] = np.arange(len(appearance))
        ordered = pairs["family"].iloc[np.argsort(place[pairs["variant"]], kind="stable")]
        return [family for family in dict.fromkeys(ordered) if isinstance(family, str)]

    def sums(self, metric: str, family: str | None = None, domain: str | None = None) -> dict[str, Sums]:
        """The sums of every variant, over all samples or those of a family or a domain."""
        rows = self._rows(metric, None, family, domain)
        numerators, denominators = self._add_up(metric, rows, self._variants[rows], len(self._index))
        is_there = self._is_there(rows)
        is_scored = np.zeros((len(self._index), self._num_queries), bool)
        is_scored[self._variants[rows], self._queries[rows]] = True
        num_queries = is_scored.sum(axis=1)
        return {
            name: Sums(numerators[v][is_there[v]], denominators[v][is_there[v]], int(num_queries[v]))
            for name, v in self._index.items()
        }

    def common_sums(
        self, variant: str, other: str, metric: str, family: str | None = None, domain: str | None = None
    ) -> tuple[Sums, Sums]:
        """The sums of two variants over the seeds and expressions that both have."""
        ours, theirs = (self._rows(metric, name, family, domain) for name in (variant, other))
        ours, theirs = _matching(ours, theirs, self._seeds * self._num_queries + self._queries)
        left, right = (self._sums_of(metric, rows) for rows in (ours, theirs))
        return left, right

    def scores(self, variant: str, metric: str, family: str | None = None, domain: str | None = None) -> pd.DataFrame:
        """Numerator and denominator of each sample of a variant, by seed, image and expression."""
        rows = self._rows(metric, variant, family, domain)
        _, numerators, denominators = self._parts_of(metric)
        index = pd.MultiIndex.from_frame(self._samples.iloc[rows][["seed", "image_id", "expression_id"]])
        return pd.DataFrame({"numerator": numerators[rows], "denominator": denominators[rows]}, index=index)

    def _sums_of(self, metric: str, rows: np.ndarray) -> Sums:
        """The sums of rows of one variant."""
        is_there = np.bincount(self._seeds[rows], minlength=len(self._seed_values)) > 0
        numerators, denominators = (part[0][is_there] for part in self._add_up(metric, rows, np.zeros_like(rows), 1))
        return Sums(numerators, denominators, num_expressions=len(np.unique(self._queries[rows])))

    def _add_up(
        self, metric: str, rows: np.ndarray, variants: np.ndarray, num_variants: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numerators and denominators, (V, S, I)."""
        _, numerators, denominators = self._parts_of(metric)
        shape = (num_variants, len(self._seed_values), len(self.images))
        places = (variants * shape[1] + self._seeds[rows]) * shape[2] + self._images[rows]
        above, below = (
            np.bincount(places, part[rows], minlength=math.prod(shape)).reshape(shape)
            for part in (numerators, denominators)
        )
        return above, below

    def _is_there(self, rows: np.ndarray) -> np.ndarray:
        """Which variants have a sample of which seed among these rows, (V, S)."""
        shape = (len(self._index), len(self._seed_values))
        places = self._variants[rows] * shape[1] + self._seeds[rows]
        return np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape) > 0

    def _rows(self, metric: str, variant: str | None, family: str | None, domain: str | None) -> np.ndarray:
        """The samples that a metric applies to, of all variants or one."""
        is_chosen, _, _ = self._parts_of(metric)
        if variant is None:
            rows = np.flatnonzero(is_chosen)
        else:
            of_variant = self._rows_by_variant[self._index[variant]]
            rows = of_variant[is_chosen[of_variant]]
        for column, value in (("family", family), ("domain", domain)):
            if value is not None:
                codes, values = self._groups[column]
                rows = rows[codes[rows] == values.get(value, -2)]
        return rows

    @cached_property
    def _rows_by_variant(self) -> list[np.ndarray]:
        order = np.argsort(self._variants, kind="stable")
        ends = np.cumsum(np.bincount(self._variants, minlength=len(self._index)))
        return np.split(order, ends[:-1])

    @cached_property
    def _groups(self) -> dict[str, tuple[np.ndarray, dict[str, int]]]:
        """Codes of family and domain, and the code of each value; -1 for samples without one."""
        found = {column: pd.factorize(self._samples[column]) for column in ("family", "domain")}
        return {
            name: (codes, {value: code for code, value in enumerate(values)}) for name, (codes, values) in found.items()
        }

    def _parts_of(self, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which samples a metric applies to, and numerator and denominator of each; NaN for the others."""
        if metric not in self._parts:
            if len(self._parts) >= _MAX_KEPT:
                del self._parts[next(iter(self._parts))]
            chosen = METRICS[metric].select(self._samples[["scoring", "family"]]).index.to_numpy()
            is_chosen = np.zeros(len(self._samples), bool)
            is_chosen[chosen] = True
            samples = self._samples if is_chosen.all() else self._samples.iloc[chosen]
            filled = [np.full(len(self._samples), np.nan) for _ in range(2)]
            for part, values in zip(filled, METRICS[metric].parts(samples), strict=True):
                part[chosen] = values.astype(float)
            self._parts[metric] = (is_chosen, filled[0], filled[1])
        return self._parts[metric]


def sums_by_image(scores: pd.DataFrame, images: Sequence[str]) -> Sums:
    """The sums of what `CodedSamples.scores` returned, over these images."""
    seeds, seed_values = _codes(scores.index.get_level_values("seed").to_series())
    codes = {image: code for code, image in enumerate(images)}
    shape = (len(seed_values), len(images))
    places = seeds * shape[1] + scores.index.get_level_values("image_id").map(codes).to_numpy(dtype=np.int64)
    above, below = (
        np.bincount(places, scores[part].to_numpy(), minlength=math.prod(shape)).reshape(shape)
        for part in ("numerator", "denominator")
    )
    return Sums(above, below, num_expressions=len(scores.index.droplevel("seed").unique()))


def _codes(values: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """The place of each value among the sorted values, and these."""
    codes, found = pd.factorize(values, sort=True, use_na_sentinel=False)
    return codes.astype(np.int64), found.tolist()


def _matching(ours: np.ndarray, theirs: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows with equal keys, in the order of `ours`."""
    left, right = keys[ours], keys[theirs]
    if np.array_equal(left, right):
        return ours, theirs
    order = np.argsort(right, kind="stable")
    is_common = np.isin(left, right)
    places = np.searchsorted(right[order], left[is_common])
    return ours[is_common], theirs[order[places]]
