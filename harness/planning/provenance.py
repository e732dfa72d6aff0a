"""Which results of a study were made by other code of the harness than the code that would run now."""

from collections.abc import Iterable

from harness.errors import StudyError, suggest
from harness.results.run_folder import Row, RunFolder
from harness.study.cell_code import numeric_code
from harness.study.study import Cell, Study


def outdated(cells: Iterable[Cell], folder: RunFolder) -> list[Row]:
    """Rows of finished cells whose code differs from the present one, or is unknown."""
    rows = folder.finished()
    found = [(cell, rows[cell.id]) for cell in cells if cell.id in rows]
    return [row for cell, row in found if row["status"] == "done" and row.get("code") != numeric_code(cell.spec)]


def outdated_sentence(cells: Iterable[Cell], folder: RunFolder) -> str:
    """What `--plan` says of them; empty where there are none."""
    rows = outdated(cells, folder)
    if not rows:
        return ""
    arms = ", ".join(dict.fromkeys(row["arm"] for row in rows))
    return (
        f"{len(rows)} finished cells ({arms}) were made by other code of the harness than the present one; "
        "--rerun [ARM] runs them again"
    )


def set_aside_outdated(study: Study, folder: RunFolder, arm: str | None) -> str:
    """Moves the outdated results of one arm, or of all, aside, so that their cells run again; says how many.

    Raises:
        StudyError: the study has no such arm.
    """
    if arm is not None and arm not in study.arms:
        raise StudyError([f"--rerun {arm}: there is no such arm; {suggest(arm, study.arms)}"])
    rows = [row for row in outdated(study.cells(), folder) if arm in (None, row["arm"])]
    for row in rows:
        folder.set_aside(row)
    if not rows:
        return "--rerun: no finished cell was made by other code than the present one"
    return f"{len(rows)} cells run again; their old rows are kept in {folder.cells / 'superseded'}"
