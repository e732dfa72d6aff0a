"""The results of a study in Python: tables, comparisons and the report of its run folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.errors import HarnessError, suggest
from harness.results.score_table import ScoreTable
from harness.results.statistics import Difference
from reports.findings import Findings, load
from reports.page import build
from reports.result_tables import all_tables


@dataclass(frozen=True)
class Results:
    """What a run folder holds.

    Attributes:
        folder: of the study, usually runs/<study>.
        num_failed: cells without a result; their rows give the reason.
    """

    folder: Path
    num_failed: int = 0

    @cached_property
    def cells(self) -> pd.DataFrame:
        """results.parquet: one row per cell."""
        return pd.read_parquet(self.folder / "results.parquet")

    @cached_property
    def samples(self) -> pd.DataFrame:
        """samples.parquet: one row per scored expression of each cell."""
        return pd.read_parquet(self.folder / "samples.parquet")

    @cached_property
    def budgets(self) -> pd.DataFrame:
        """budgets.parquet: the scores of each cell at each budget of training."""
        return pd.read_parquet(self.folder / "budgets.parquet")

    @cached_property
    def _findings(self) -> Findings:
        return load(self.folder)

    @property
    def scores(self) -> ScoreTable:
        """Estimates and paired comparisons of the finished cells."""
        return self._findings.score_table

    def table(self, name: str = "main") -> pd.DataFrame:
        """A table of the report as numbers: one row per arm and search point, intervals in columns of their own.

        Args:
            name: `main`, or another file name under report/tables.

        Raises:
            HarnessError: the report has no table of this name.
        """
        found = {table.name: table for table in all_tables(self._findings)}
        if name not in found:
            raise HarnessError(f"the report has no table {name!r}; {suggest(name, found)}")
        return found[name].frame()

    def compare(
        self, variant: str, baseline: str, metric: str = "giou", family: str | None = None, domain: str | None = None
    ) -> Difference:
        """Variant minus baseline, paired by seed and expression, with a bootstrap interval and a permutation p-value.

        Args:
            variant: an arm, or an arm at a search point as in the table: `sspe (blocks=3, queries=4)`.
            metric: a metric of expressions or answers (`python -m harness.run --list metrics`).
            family, domain: restrict the comparison to a family of expressions or a visual domain.

        Raises:
            HarnessError: no finished cell has this name.
        """
        for name in (variant, baseline):
            if name not in self.scores.variants:
                raise HarnessError(f"no finished cell of {name!r}; {suggest(name, self.scores.variants)}")
        return self.scores.compare(variant, baseline, metric, family, domain)

    def report(self) -> Path:
        """Build the report; returns its page, <folder>/report/index.html."""
        return build(self.folder)
