"""From how many training steps on cells had stopped learning, by the budgets of finished cells."""

import json
from collections.abc import Iterable
from statistics import median

from harness.model.config import LINEAR
from harness.planning.plan import finished_rows, kind_of
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Study


def sentence(study: Study, folder: RunFolder) -> str:
    """How much cells like those of the study gained in the second half of their training; empty without such cells.

    Like are cells with the same backbone and batches, of this study and of others with a run folder beside it.
    """
    cells = study.cells_to_check()
    # A linear reader takes no steps, so all of its budgets have the same score.
    kinds = {kind_of(cell.spec.model_dump(mode="json")) for cell in cells if cell.spec.llm.name != LINEAR}
    gains = gains_by_steps(row for row in finished_rows(folder) if kind_of(json.loads(row["spec"])) in kinds)
    if not gains:
        return ""
    tolerance = study.settings.tolerance
    planned = max(cell.spec.training.steps for cell in cells)
    enough = next((steps for steps, found in gains.items() if median(found) < tolerance), None)
    shown = ", ".join(f"{median(found):+.3f} at {steps:,} (n = {len(found)})" for steps, found in gains.items())
    text = f"median change of gIoU in the second half of the training of finished cells, by training steps: {shown}"
    if enough is None:
        return f"{text}; none is below the tolerance of {tolerance:g}, so plan more than {max(gains):,} steps"
    if planned < enough:
        return f"{text}; this study has {planned:,} steps, and {enough:,} are proposed"
    return f"{text}; the {planned:,} steps of this study suffice"


def gains_by_steps(rows: Iterable[Row]) -> dict[int, list[float]]:
    """Changes of gIoU from half of the training steps to all of them, by training steps, ascending."""
    found: dict[int, list[float]] = {}
    for row in rows:
        half = next((each for each in json.loads(row.get("early") or "[]") if each["budget"] == 0.5), None)
        if half is not None and half.get("giou") is not None and row.get("giou") is not None:
            found.setdefault(int(row["steps"]), []).append(row["giou"] - half["giou"])
    return dict(sorted(found.items()))
