"""The results behind a report: scores, differences, the Pareto front, and the verdicts on claims."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from harness.errors import RENAMED, DataError
from harness.results.budget_scores import BudgetScores
from harness.results.claims import Claim, Judgement, judge_claims
from harness.results.columns import COLUMNS, SAMPLE_COLUMNS
from harness.results.metrics import FAMILIES, METRICS, SCORES, aggregate_seeds
from harness.results.score_table import ScoreTable, variant_name
from harness.results.statistics import Difference, Estimate, Verdict, holm, is_on_front, judge

DEFAULT_MARGIN, DEFAULT_TOLERANCE = 0.01, 0.02
MAX_SHOWN = 24
"""Variants in a figure or in the gallery; tables show all of them."""
_BULKY = ("text", "references", "prediction_rle", "target_rle")
"""Columns of samples that only the gallery uses, for a few rows."""
_OPTIONAL = ("stage", "failed_stage", "code", "latency_p90_ms", "latency_runs", "latency_round")
"""Columns that tables of earlier runs may lack."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant compared with a baseline; `num_comparisons` is the size of the Holm family."""

    difference: Difference
    adjusted_p: float
    num_comparisons: int
    verdict: Verdict

    @property
    def minimum_detectable(self) -> float:
        """Smallest true difference that this comparison detects with 80% power."""
        return self.difference.minimum_detectable(self.num_comparisons)


@dataclass(frozen=True, slots=True)
class Variant:
    """An arm at one search point: its score, its costs, and its comparisons with baselines.

    Args:
        means: of every measured column; refer to `aggregate_seeds`.
        against: comparisons by baseline; without baselines that have no common seed.
    """

    name: str
    score: Estimate
    means: dict[str, float]
    against: dict[str, Comparison]
    is_on_front: bool
    front_share: float


@dataclass(frozen=True)
class Findings:
    """The results of a run; `variants` are in the order of the study.

    Args:
        metric: the score that ranks and compares variants, which is the first score among the study's objectives.
        samples: without texts and masks, which `gallery_samples` loads.
    """

    folder: Path
    metric: str
    study: dict[str, Any]
    results: pd.DataFrame
    samples: pd.DataFrame
    score_table: ScoreTable
    scores: BudgetScores
    variants: tuple[Variant, ...]
    baselines: tuple[str, ...]
    margin: float
    tolerance: float
    judgements: tuple[Judgement, ...]
    environment: dict[str, Any]
    importance: dict[str, Any] | None

    @property
    def baseline(self) -> str | None:
        """The first baseline, which figures and the gallery show; None if no baseline has a finished cell."""
        return next(iter(self.baselines), None)

    @property
    def missing_baselines(self) -> list[str]:
        """The baselines of the study without a finished cell."""
        return [arm for arm in _named_baselines(self.study) if not self.score_table.variants_of(arm)]

    @cached_property
    def done(self) -> pd.DataFrame:
        """The finished cells."""
        return self.results[self.results["status"] == "done"]

    @property
    def num_comparisons(self) -> int:
        """Size of the Holm family."""
        return max((each.num_comparisons for variant in self.variants for each in variant.against.values()), default=0)

    @property
    def best(self) -> Variant | None:
        """The variant with the highest score."""
        scored = [variant for variant in self.variants if np.isfinite(variant.score.value)]
        return max(scored, key=lambda variant: variant.score.value, default=None)

    @cached_property
    def shown(self) -> tuple[Variant, ...]:
        """The variants in figures and gallery: all, or the baselines, the Pareto front and the highest scores."""
        ranked = sorted(
            self.variants, key=lambda variant: np.nan_to_num(variant.score.value, nan=-np.inf), reverse=True
        )
        best = [self.best] if self.best is not None else []
        front = [variant for variant in ranked if variant.is_on_front]
        names = dict.fromkeys([*self.baselines, *(variant.name for variant in [*best, *front, *ranked])])
        chosen = {*[*names][:MAX_SHOWN]}
        return tuple(variant for variant in self.variants if variant.name in chosen)

    @property
    def about_shown(self) -> str:
        """A sentence for captions where not every variant is shown, with a space before it; empty otherwise."""
        if len(self.shown) == len(self.variants):
            return ""
        return (
            f" {len(self.shown)} of {len(self.variants):,} arms are shown: the baselines, the Pareto front and the "
            "highest scores. The tables have all of them."
        )

    @cached_property
    def families(self) -> list[str]:
        """The families that were scored; the families of the harness come first, in its order."""
        present = self.score_table.families_of(self.metric)
        known = [family for family in FAMILIES if family in present]
        return [*known, *(family for family in present if family not in known)]

    @property
    def label(self) -> str:
        """The label of the score."""
        return METRICS[self.metric].label

    @property
    def query_noun(self) -> str:
        """The kind of samples that are scored: expression or question."""
        return METRICS[self.metric].applies_to or "expression"

    @property
    def has_masks(self) -> bool:
        """Whether any expression was scored."""
        return bool(self.samples["scoring"].isna().any())

    @property
    def unfinished(self) -> pd.DataFrame:
        """The cells that failed, were skipped or have not finished."""
        return self.results[self.results["status"] != "done"]

    def cells(self, variant: str) -> pd.DataFrame:
        """The finished cells of a variant, by seed."""
        return self._cells[variant]

    @cached_property
    def _cells(self) -> dict[str, pd.DataFrame]:
        done = self.done
        names = [variant_name(arm, point) for arm, point in zip(done["arm"], done["point"], strict=True)]
        return {str(name): cells.sort_values("seed") for name, cells in done.groupby(np.array(names, dtype=object))}

    def samples_of(self, cell: str) -> pd.DataFrame:
        """The samples of a cell."""
        rows = self._rows_of_cells.get(cell, np.arange(0))
        is_together = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
        # A slice of a large table is a view; other rows are copied.
        return self.samples.iloc[rows[0] : rows[-1] + 1] if is_together else self.samples.iloc[rows]

    @cached_property
    def _rows_of_cells(self) -> dict[str, np.ndarray]:
        return {str(cell): rows for cell, rows in self.samples.groupby("cell").indices.items()}

    def gallery_samples(self, cells: Collection[str], images: Collection[str]) -> pd.DataFrame:
        """All columns of the samples of some cells on some images."""
        chosen = [("cell", "in", [*cells]), ("image_id", "in", [*images])]
        return pd.read_parquet(self.folder / "samples.parquet", filters=chosen).reindex(columns=list(SAMPLE_COLUMNS))

    def spec(self, variant: str) -> dict[str, Any]:
        """The specification of a variant's first finished cell; empty if the table has none."""
        text = self.cells(variant)["spec"].iloc[0]
        return json.loads(text) if isinstance(text, str) else {}


def load(folder: Path) -> Findings:
    """Load the tables of a run and compute its results.

    Raises:
        DataError: the folder has no result table, or one of an earlier version with other column names.
    """
    if not (folder / "results.parquet").exists():
        raise DataError(f"found no results.parquet in {folder}; run the study before its report")
    results, columns = pd.read_parquet(folder / "results.parquet"), pq.read_schema(folder / "samples.parquet").names
    _refuse_renamed(folder, {*results.columns, *columns})
    used = [column for column in columns if column in SAMPLE_COLUMNS and column not in _BULKY]
    samples = pd.read_parquet(folder / "samples.parquet", columns=used)
    study = YAML(typ="safe").load(folder / "study.resolved.yaml")
    results = results.reindex(columns=list(dict.fromkeys([*results.columns, *COLUMNS, *_OPTIONAL])))
    kept = [column for column in SAMPLE_COLUMNS if column not in _BULKY]
    samples = samples.reindex(columns=kept)  # tables of earlier runs lack the columns of questions
    early = folder / "early_samples.parquet"
    early_samples = pd.read_parquet(early, columns=used) if early.exists() else samples.iloc[:0]
    scores = BudgetScores.of(results, samples, early_samples.reindex(columns=kept))
    score_table = scores.last
    metric = _ranked_by(study.get("objectives") or {})
    margin = float(study.get("margin") or DEFAULT_MARGIN)
    tolerance = float(study.get("tolerance") or DEFAULT_TOLERANCE)
    found = [score_table.variants_of(arm) for arm in _named_baselines(study)]
    baselines = tuple(variants[0] for variants in found if variants)
    claims = [Claim.model_validate(claim) for claim in study.get("claims") or []]
    return Findings(
        folder=folder,
        metric=metric,
        study=study,
        results=results,
        samples=samples,
        score_table=score_table,
        scores=scores,
        variants=_variants(score_table, metric, results, baselines, margin),
        baselines=baselines,
        margin=margin,
        tolerance=tolerance,
        judgements=tuple(judge_claims(claims, scores, margin, tolerance)),
        environment=_json(folder / "environment.json") or {},
        importance=_json(folder / "importance.json"),
    )


def _named_baselines(study: Mapping[str, Any]) -> list[str]:
    named = study.get("baseline") or []
    return [named] if isinstance(named, str) else list(named)


def _ranked_by(objectives: Mapping[str, str]) -> str:
    scores = [name for name in objectives if name in SCORES and METRICS[name].higher_is_better]
    return next(iter(scores), "giou")


def _refuse_renamed(folder: Path, columns: set[str]) -> None:
    """Raises DataError for tables of an earlier version."""
    renamed = [f"{column} is now {RENAMED[column]}" for column in sorted(columns & RENAMED.keys())]
    if renamed:
        raise DataError(
            f"{folder} holds tables of an earlier version ({', '.join(renamed)}); rename the columns, or run the study "
            "again with --out and another folder"
        )


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _variants(
    score_table: ScoreTable, metric: str, results: pd.DataFrame, baselines: tuple[str, ...], margin: float
) -> tuple[Variant, ...]:
    done = results[results["status"] == "done"]
    names = pd.Series([variant_name(*pair) for pair in zip(done["arm"], done["point"], strict=True)], index=done.index)
    means = {str(name): aggregate_seeds(cells) for name, cells in done.groupby(names)}
    scores = {name: score_table.estimate(name, metric) for name in score_table.variants}
    costs = {name: means[name].get("tokens", float("nan")) for name in score_table.variants}
    shares = score_table.front_share(costs, metric)
    quality, cost = (np.array(found, float) for found in ([one.value for one in scores.values()], [*costs.values()]))
    on_front = dict(zip(score_table.variants, is_on_front(quality, cost).tolist(), strict=True))
    comparisons = _comparisons(score_table, metric, baselines, margin)
    return tuple(
        Variant(name, scores[name], means[name], comparisons[name], on_front[name], shares.get(name, float("nan")))
        for name in score_table.variants
    )


def _comparisons(
    score_table: ScoreTable, metric: str, baselines: tuple[str, ...], margin: float
) -> dict[str, dict[str, Comparison]]:
    """Every variant compared with every baseline, by both names; each pair is one test of the Holm family.

    Pairs without a common seed are left out.
    """
    pairs = [(name, baseline) for baseline in baselines for name in score_table.variants if name != baseline]
    differences = {pair: score_table.compare(*pair, metric) for pair in pairs}
    differences = {pair: difference for pair, difference in differences.items() if difference.is_compared}
    tests: dict[frozenset[str], float] = {}
    for pair, difference in differences.items():
        tests.setdefault(frozenset(pair), difference.p)
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    comparisons: dict[str, dict[str, Comparison]] = {name: {} for name in score_table.variants}
    for (name, baseline), difference in differences.items():
        p = adjusted[frozenset((name, baseline))]
        comparisons[name][baseline] = Comparison(difference, p, len(tests), judge(difference, p, margin))
    return comparisons
