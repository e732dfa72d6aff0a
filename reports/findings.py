"""Everything a report says about a run, worked out once: scores, differences, the front, and the claims' verdicts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from harness.errors import RENAMED, DataError
from harness.results.claims import Claim, Judgement, judge_claims
from harness.results.run_folder import ANSWER_METRICS, COLUMNS, FAMILIES, METRICS, SAMPLE_COLUMNS, aggregate_seeds
from harness.results.score_table import LOWER_IS_BETTER, ScoreTable, variant_name
from harness.results.score_table import METRICS as SCORES
from harness.results.statistics import Difference, Estimate, Verdict, holm, is_on_front, judge

DEFAULT_MARGIN = 0.01
_OPTIONAL = ("stage", "failed_stage", "code", "latency_p90_ms", "latency_runs", "latency_round")
"""Columns that tables of earlier runs lack."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against a baseline; `num_comparisons` is the size of the Holm family."""

    difference: Difference
    adjusted_p: float
    num_comparisons: int
    verdict: Verdict

    @property
    def minimum_detectable(self) -> float:
        """Smallest true difference that this comparison finds with 80% power."""
        return self.difference.minimum_detectable(self.num_comparisons)


@dataclass(frozen=True, slots=True)
class Variant:
    """An arm at one search point: its score, what it costs, and how it compares with baselines.

    Args:
        means: what was measured, see `aggregate_seeds`.
        against: by baseline; without those that share no seed with it.
    """

    name: str
    score: Estimate
    means: dict[str, float]
    against: dict[str, Comparison]
    is_on_front: bool
    front_share: float


@dataclass(frozen=True, slots=True)
class Findings:
    """A run, read and judged; `variants` are in the study's order.

    Args:
        metric: what variants are ranked and compared by: the first score among the study's objectives.
    """

    folder: Path
    metric: str
    study: dict[str, Any]
    results: pd.DataFrame
    samples: pd.DataFrame
    score_table: ScoreTable
    variants: tuple[Variant, ...]
    baselines: tuple[str, ...]
    margin: float
    judgements: tuple[Judgement, ...]
    environment: dict[str, Any]
    importance: dict[str, Any] | None

    @property
    def baseline(self) -> str | None:
        """The first baseline, which figures and the gallery show; None where none has a finished cell."""
        return next(iter(self.baselines), None)

    @property
    def missing_baselines(self) -> list[str]:
        """The baselines that the study names and that have no finished cell."""
        return [arm for arm in _named_baselines(self.study) if not self.score_table.variants_of(arm)]

    @property
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

    @property
    def families(self) -> list[str]:
        """The families that the score speaks of, those of `scenes` in their own order and first."""
        present = self.score_table.families_of(self.metric)
        known = [family for family in FAMILIES if family in present]
        return [*known, *(family for family in present if family not in known)]

    @property
    def label(self) -> str:
        """What the score is called."""
        return METRICS[self.metric].label

    @property
    def query_noun(self) -> str:
        """What the score is of: an expression or a question."""
        return "question" if self.metric in ANSWER_METRICS else "expression"

    @property
    def is_drawn(self) -> bool:
        """Whether any expression was scored, so that masks can be spoken of."""
        return bool(self.samples["scoring"].isna().any())

    @property
    def unfinished(self) -> pd.DataFrame:
        """The cells that failed, were skipped, or are not finished yet."""
        return self.results[self.results["status"] != "done"]

    def cells(self, variant: str) -> pd.DataFrame:
        """The finished cells of a variant, by seed."""
        done = self.done
        names = [variant_name(arm, point) for arm, point in zip(done["arm"], done["point"], strict=True)]
        return done[[name == variant for name in names]].sort_values("seed")

    def spec(self, variant: str) -> dict[str, Any]:
        """The specification of a variant's first finished cell; empty where the table has none."""
        text = self.cells(variant)["spec"].iloc[0]
        return json.loads(text) if isinstance(text, str) else {}


def load(folder: Path) -> Findings:
    """Read a run's folder and judge what is in it.

    Raises:
        DataError: the folder holds no result table, or one of an earlier version with other column names.
    """
    if not (folder / "results.parquet").exists():
        raise DataError(f"{folder} holds no results.parquet; run the study before asking for its report")
    results, samples = (pd.read_parquet(folder / f"{name}.parquet") for name in ("results", "samples"))
    _refuse_renamed(folder, {*results.columns, *samples.columns})
    study = YAML(typ="safe").load(folder / "study.resolved.yaml")
    results = results.reindex(columns=list(dict.fromkeys([*results.columns, *COLUMNS, *_OPTIONAL])))
    samples = samples.reindex(columns=list(SAMPLE_COLUMNS))  # one of before questions were asked has no answers
    score_table = ScoreTable(results, samples)
    metric = _ranked_by(study.get("objectives") or {})
    margin = float(study.get("margin") or DEFAULT_MARGIN)
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
        variants=_variants(score_table, metric, results, baselines, margin),
        baselines=baselines,
        margin=margin,
        judgements=tuple(judge_claims(claims, score_table, margin)),
        environment=_json(folder / "environment.json") or {},
        importance=_json(folder / "importance.json"),
    )


def _named_baselines(study: Mapping[str, Any]) -> list[str]:
    named = study.get("baseline") or []
    return [named] if isinstance(named, str) else list(named)


def _ranked_by(objectives: Mapping[str, str]) -> str:
    scores = [name for name in objectives if name in SCORES and name not in LOWER_IS_BETTER]
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
    points = np.array([[scores[name].value, -costs[name]] for name in score_table.variants]).reshape(-1, 2)
    on_front = dict(zip(score_table.variants, is_on_front(points).tolist(), strict=True))
    comparisons = _comparisons(score_table, metric, baselines, margin)
    return tuple(
        Variant(name, scores[name], means[name], comparisons[name], on_front[name], shares.get(name, float("nan")))
        for name in score_table.variants
    )


def _comparisons(
    score_table: ScoreTable, metric: str, baselines: tuple[str, ...], margin: float
) -> dict[str, dict[str, Comparison]]:
    """Every variant against every baseline, by both names; each pair is one test of the study's family.

    Pairs without a common seed are left out.
    """
    pairs = [(name, baseline) for baseline in baselines for name in score_table.variants if name != baseline]
    differences = {pair: score_table.compare(*pair, metric) for pair in pairs}
    differences = {pair: difference for pair, difference in differences.items() if difference.is_compared}
    tests = list(dict.fromkeys(frozenset(pair) for pair in differences))
    first = {test: next(pair for pair in differences if frozenset(pair) == test) for test in tests}
    adjusted = dict(zip(tests, holm([differences[first[test]].p for test in tests]), strict=True))
    comparisons: dict[str, dict[str, Comparison]] = {name: {} for name in score_table.variants}
    for (name, baseline), difference in differences.items():
        p = adjusted[frozenset((name, baseline))]
        comparisons[name][baseline] = Comparison(difference, p, len(tests), judge(difference, p, margin))
    return comparisons
