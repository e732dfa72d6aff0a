"""Finds results of a study that were computed by another version of the code."""

from collections.abc import Iterable

from harness.errors import StudyError, suggest
from harness.results.run_folder import Row, RunFolder
from harness.study.cell_code import numeric_code
from harness.study.study import Cell, Study


def outdated(cells: Iterable[Cell], folder: RunFolder) -> list[Row]:
    """Rows of finished cells whose code fingerprint differs from the current one or is missing."""
    rows = folder.finished()
    found = [(cell, rows[cell.id]) for cell in cells if cell.id in rows]
    return [row for cell, row in found if row["status"] == "done" and row.get("code") != numeric_code(cell.spec)]


def outdated_sentence(cells: Iterable[Cell], folder: RunFolder) -> str:
    """The message of `--plan` about outdated results; empty if there are none."""
    rows = outdated(cells, folder)
    if not rows:
        return ""
    arms = ", ".join(dict.fromkeys(row["arm"] for row in rows))
    return (
        f"{len(rows)} finished cells ({arms}) were computed by another version of the code; "
        "--rerun [ARM] runs them again"
    )


def set_aside_outdated(study: Study, folder: RunFolder, arm: str | None) -> str:
    """Sets aside the outdated results of one arm or of all arms, so that their cells run again; returns a message.

    Raises:
        StudyError: the study has no such arm.
    """
    if arm is not None and arm not in study.arms:
        raise StudyError([f"--rerun {arm}: there is no such arm; {suggest(arm, study.arms)}"])
    rows = [row for row in outdated(study.cells(), folder) if arm in (None, row["arm"])]
    for row in rows:
        folder.set_aside(row)
    if not rows:
        return "--rerun: no finished cell was computed by another version of the code"
    return f"{len(rows)} cells will run again; their old rows are kept in {folder.cells / 'superseded'}"
