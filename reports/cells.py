"""The cells behind a report: which have no result and why, whether one code made them, and how they were timed."""

from collections.abc import Iterator

import pandas as pd

from harness.results.run_folder import in_short
from harness.results.score_table import seeds_in_words, variant_name
from reports.findings import Findings
from reports.numbers import DASH, fixed, is_missing, listed
from reports.tables import Cell, Column, Table

_DOING = {
    "trained": "training",
    "scored": "scoring",
    "costed": "measuring cost",
    "illustrated": "drawing the gallery",
}
_REACHED = {"trained": "trained, not scored", "scored": "scored, cost not measured", "costed": "scored and costed"}


def unfinished_table(findings: Findings) -> Table:
    """Cells that failed, were skipped or are unfinished: how far they got, what they scored, and why they stopped."""
    columns = {
        Column("arm", "arm", is_text=True): lambda row: variant_name(row["arm"], row["point"]),
        Column("seed", "seed", is_text=True): lambda row: f"{row['seed']:.0f}",
        Column("status", "status", is_text=True): lambda row: row["status"],
        Column("stage", "done so far", is_text=True): lambda row: _text(row["stage"]),
        Column("failed_stage", "failed while", is_text=True): lambda row: _DOING.get(row["failed_stage"], DASH),
        Column(findings.metric, findings.label, is_text=True): lambda row: fixed(_number(row[findings.metric])),
        Column("reason", "reason", is_text=True): lambda row: in_short(_text(row["reason"], "")) or DASH,
        Column("cell", "cell", is_text=True): lambda row: row["cell"],
    }
    made = {column: [make(row) for _, row in findings.unfinished.iterrows()] for column, make in columns.items()}
    kept = {column: texts for column, texts in made.items() if any(text != DASH for text in texts)}
    rows = tuple(tuple(Cell(text) for text in texts) for texts in zip(*kept.values(), strict=True))
    return Table("unfinished", "Cells that have not finished", "They count in no score above.", tuple(kept), rows)


def scored_but_unfinished(findings: Findings) -> Iterator[str]:
    """That some cells have scores although they are not finished, which a report without any score must say."""
    cells = findings.unfinished
    scored = cells[cells[findings.metric].notna()]
    if len(scored):
        yield (
            f"{_cells(len(scored))} scored but not finished ({listed(list(dict.fromkeys(scored['arm'])))}): their "
            f"{findings.label} is in the table of cells that have not finished, without interval or comparison."
        )


def caveats(findings: Findings) -> Iterator[str]:
    """What a reader must know of the cells before quoting a number."""
    yield from _about_status(findings.unfinished)
    yield from _about_code(findings.done)
    if findings.done["environment"].nunique() > 1:
        yield "Cells ran in different environments; compare latency and memory only within one (see results.parquet)."
    yield from _about_latency(findings.done)


def _about_status(cells: pd.DataFrame) -> Iterator[str]:
    failing = {stage: f"while {doing}" for stage, doing in _DOING.items()}
    for status, stage, words, end in (
        ("failed", "failed_stage", failing, "reasons below the tables"),
        ("skipped", "failed_stage", {}, "reasons below the tables"),
        ("unfinished", "stage", _REACHED, "the study's command continues them"),
    ):
        such = cells[cells["status"] == status]
        if such.empty:
            continue
        stages = [words.get(each, "") for each in such[stage]]
        counts = such.assign(stage=stages).groupby(["arm", "stage"], sort=False).size()
        arms = [
            " ".join([f"{number} of {arm}" if number > 1 and stage else arm, stage]).strip()
            for (arm, stage), number in counts.items()
        ]
        yield f"{_cells(len(such))} {status} ({listed(arms)}); {end}."


def _about_code(done: pd.DataFrame) -> Iterator[str]:
    """Whether the harness has changed what it computes between the cells."""
    known = done[done["code"].notna() & (done["code"] != "")]
    if known["code"].nunique() < 2:
        return
    is_mixed = known.groupby("arm")["code"].nunique() > 1
    made = [
        f"{code} made "
        + listed(
            [
                f"{arm} ({seeds_in_words(sorted(cells['seed'].astype(int).unique()))})" if is_mixed[arm] else str(arm)
                for arm, cells in same.groupby("arm", sort=False)
            ]
        )
        for code, same in known.groupby("code", sort=False)
    ]
    yield (
        f"The harness's code changed between cells: {'; '.join(made)}. A difference between them may come from the "
        "code; --rerun runs the cells of earlier code again."
    )


def _about_latency(done: pd.DataFrame) -> Iterator[str]:
    timed = done[done["latency_ms"].notna()]
    if timed.empty:
        return
    runs, rounds = timed["latency_runs"].dropna().astype(int), timed["latency_round"]
    over = ""
    if len(runs):
        least, most = runs.min(), runs.max()
        over = f" over {least if least == most else f'{least} to {most}'} timed runs of each trained model"
    p90 = "; p90 is in the cost table" if timed["latency_p90_ms"].notna().any() else ""
    clock = "On a CPU it is the processor time of one thread."
    yield f"Latency is the median{over}, averaged over seeds{p90}. {clock} {_in_turns(rounds)}"


def _in_turns(rounds: pd.Series) -> str:
    if rounds.notna().all() and rounds.nunique() == 1:
        return "All models were timed in turns on the same images, so that a slow minute of the machine affects all."
    groups = rounds.nunique() if rounds.notna().all() else 0
    how = f"in turns in {groups} groups, not all together" if groups else "one after another, not in turns"
    return f"The models were timed {how}: differences in latency may be the machine's."


def _cells(number: int) -> str:
    return "1 cell" if number == 1 else f"{number} cells"


def _text(value: object, missing: str = DASH) -> str:
    return value if isinstance(value, str) and value else missing


def _number(value: object) -> float | None:
    return None if value is None or is_missing(float(value)) else float(value)  # type: ignore[arg-type]
