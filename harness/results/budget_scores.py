"""Scores at several budgets of training, and whether a difference between two variants still moves.

A *budget* is a share of the training steps of a cell. The model of a budget is that of a training of this length.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.results.score_table import ScoreTable
from harness.results.statistics import NOT_COMPARED, Change, Difference, interval

STEPS_TO_GIOU = "steps_to_giou"
"""Training steps until a variant reaches a gIoU, interpolated between its budgets."""


@dataclass(frozen=True, slots=True)
class BudgetScores:
    """The score tables of a study by budget, ascending; the last is that of the whole training.

    Attributes:
        steps: training steps of each budget.
    """

    tables: Mapping[float, ScoreTable]
    steps: Mapping[float, int]

    @classmethod
    def of(cls, results: pd.DataFrame, samples: pd.DataFrame, early_samples: pd.DataFrame) -> "BudgetScores":
        """The tables of a run folder; without early samples, there is one budget.

        Cells of one study may have different numbers of steps; budgets are shares.
        """
        done = results[(results["status"] == "done") & results["early"].notna()]
        early = [
            (cell, each) for cell, text in zip(done["cell"], done["early"], strict=True) for each in json.loads(text)
        ]
        budget_of = {(cell, each["steps"]): each["budget"] for cell, each in early}
        keys = zip(early_samples["cell"], early_samples["steps"], strict=True)
        budgets = np.array([budget_of.get(key, np.nan) for key in keys])
        tables = {
            budget: ScoreTable(results, early_samples[budgets == budget])
            for budget in sorted({float(each) for each in budgets if np.isfinite(each)})
        }
        last = results["steps"].astype(float).max()
        steps = {budget: round(budget * last) if np.isfinite(last) else 0 for budget in (*tables, 1.0)}
        return cls({**tables, 1.0: ScoreTable(results, samples)}, steps)

    @property
    def last(self) -> ScoreTable:
        """The table of the whole training."""
        return self.tables[1.0]

    @property
    def half(self) -> ScoreTable | None:
        """The table of half of the training; None if cells were not scored there."""
        return self.tables.get(0.5)

    def gained(self, variant: str, metric: str = "giou") -> Change | None:
        """The change of a score from half of the training steps to all of them; None if it was not scored at half."""
        if self.half is None or variant not in self.half.variants:
            return None
        return self.last.score_change_since(self.half, variant, metric)

    def steps_to_giou(self, variant: str, other: str, giou: float) -> Difference:
        """Steps until one variant reaches a gIoU minus those of another, over the common resamples of images and seeds.

        A variant that does not reach it counts with all steps of the training; if neither does, they are not compared.
        """
        tables = self.tables.values()
        both = [name for name in (variant, other) if all(name in table.variants for table in tables)]
        if len(both) < 2 or not self.last.common_seeds(variant, other):
            return NOT_COMPARED
        values = [
            self._steps_to(np.array([[t.estimate(name).value] for t in self.tables.values()]), giou) for name in both
        ]
        if all(value[0] >= self.steps[1.0] for value in values):
            return NOT_COMPARED
        ours, theirs = (self._steps_to(np.stack([table.replicates(name) for table in tables]), giou) for name in both)
        differences = ours - theirs
        low, high = interval(differences)
        tail = min((differences <= 0).mean(), (differences >= 0).mean())
        estimate = self.last.estimate(variant)
        return Difference(
            delta=float(values[0][0] - values[1][0]),
            low=low,
            high=high,
            standard_error=float(np.std(differences, ddof=1)),
            p=float(min(1.0, 2 * max(tail, 1 / len(differences)))),
            num_seeds=len(self.last.common_seeds(variant, other)),
            num_images=estimate.num_images,
            num_expressions=estimate.num_expressions,
        )

    def _steps_to(self, scores: np.ndarray, giou: float) -> np.ndarray:
        """Steps (R,) at which scores (budgets, R) reach a gIoU, on straight lines that start with 0 at step 0."""
        steps = np.array([0.0, *(float(self.steps[budget]) for budget in self.tables)])
        scores = np.concatenate([np.zeros((1, scores.shape[1])), scores])
        found = np.full(scores.shape[1], steps[-1])
        for i in reversed(range(1, len(steps))):
            rises = scores[i] >= giou
            slope = np.maximum(scores[i] - scores[i - 1], 1e-12)
            reached = steps[i - 1] + (giou - scores[i - 1]) / slope * (steps[i] - steps[i - 1])
            found = np.where(rises & (scores[i - 1] < giou), reached, found)
        return found
