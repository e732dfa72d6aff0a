"""The table of results that a run prints."""

import json

import pandas as pd
from rich.table import Table

from harness.results.labels import point_label
from harness.results.metrics import ANSWER_METRICS, METRICS, aggregate_seeds, shuffled

_ANSWERS = [column for scoring in ANSWER_METRICS for column in (scoring, shuffled(scoring))]
RESULT_COLUMNS = (
    "giou",
    shuffled("giou"),
    "giou_swapped_tokens",
    "giou_random_object",
    "fp_rate",
    *_ANSWERS,
    "tokens",
    "latency_ms",
)


def result_table(results: pd.DataFrame) -> Table:
    """Means over seeds, one row per arm and point."""
    table = Table()
    for column in ("arm", "point", "seeds"):
        table.add_column(column)
    measured = [name for name in RESULT_COLUMNS if results[name].notna().any()]
    for name in measured:
        table.add_column(METRICS[name].heading, justify="right")
    for (arm, point), cells in results.groupby(["arm", "point"], sort=False):
        done = cells[cells["status"] == "done"]
        means = aggregate_seeds(done)
        shown = [f"{means[name]:.{METRICS[name].decimals}f}" for name in measured]
        row = ["-" if value == "nan" else value for value in shown]
        table.add_row(str(arm), point_label(json.loads(str(point))), f"{len(done)} of {len(cells)}", *row)
    return table
