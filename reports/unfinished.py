"""Cells without a result: how far they came, and why they stopped."""

from collections.abc import Iterator

from harness.results.run_folder import in_short
from harness.results.score_table import variant_name
from reports.findings import Findings
from reports.numbers import DASH, fixed, is_missing, listed, plural
from reports.tables import Cell, Column, Table

FAILED_WHILE = {
    "trained": "training",
    "scored": "scoring",
    "costed": "measuring cost",
    "illustrated": "saving the gallery",
}
"""By the stage that raised."""


def unfinished_table(findings: Findings) -> Table:
    """Cells that failed, were skipped or have not finished; a column without any value is left out."""
    columns = {
        Column("arm", "arm", is_text=True): lambda row: variant_name(row["arm"], row["point"]),
        Column("seed", "seed", is_text=True): lambda row: f"{row['seed']:.0f}",
        Column("status", "status", is_text=True): lambda row: row["status"],
        Column("stage", "last finished stage", is_text=True): lambda row: _text(row["stage"]),
        Column("failed_stage", "failed while", is_text=True): lambda row: FAILED_WHILE.get(row["failed_stage"], DASH),
        Column(findings.metric, findings.label, is_text=True): lambda row: fixed(_number(row[findings.metric])),
        Column("reason", "reason", is_text=True): lambda row: in_short(_text(row["reason"], "")) or DASH,
        Column("cell", "cell", is_text=True): lambda row: row["cell"],
    }
    made = {column: [make(row) for _, row in findings.unfinished.iterrows()] for column, make in columns.items()}
    kept = {column: texts for column, texts in made.items() if any(text != DASH for text in texts)}
    rows = tuple(tuple(Cell(text) for text in texts) for texts in zip(*kept.values(), strict=True))
    caption = "The tables above do not include these cells."
    return Table("unfinished", "Unfinished cells", caption, tuple(kept), rows)


def scored_but_unfinished(findings: Findings) -> Iterator[str]:
    """Where to find the scores of cells that are scored but not finished."""
    cells = findings.unfinished
    scored = cells[cells[findings.metric].notna()]
    if len(scored):
        arms = listed(list(dict.fromkeys(scored["arm"])))
        yield (
            f"{plural(len(scored), 'cell')} scored but not finished ({arms}): the table of unfinished cells shows the "
            f"{findings.label} without intervals or comparisons."
        )


def _text(value: object, missing: str = DASH) -> str:
    return value if isinstance(value, str) and value else missing


def _number(value: object) -> float | None:
    return None if value is None or is_missing(float(value)) else float(value)  # type: ignore[arg-type]
