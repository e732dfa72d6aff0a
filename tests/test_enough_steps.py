"""The proposal of training steps from finished cells."""

import json

import pytest

from harness.planning.enough_steps import gains_by_steps, sentence
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from tests.small_study import row_of, write_study


def finished(tmp_path, gains: dict[int, list[float]]) -> None:
    """Rows of other studies of the same backbone, whose gIoU rose by these amounts in the second half."""
    for steps, found in gains.items():
        study = Study.from_yaml(write_study(tmp_path), [f"training.steps={steps}"])
        folder = RunFolder(tmp_path / "runs" / f"of_{steps}")
        folder.cells.mkdir(parents=True)
        for cell, gain in zip(study.cells(), found, strict=False):
            early = [{"budget": 0.5, "steps": steps // 2, "giou": 0.5 - gain}, {"budget": 0.25, "steps": 1, "giou": 0}]
            folder.write_cell({**row_of(cell), "giou": 0.5, "steps": steps, "early": json.dumps(early)})


def said(tmp_path, steps: int) -> str:
    study = Study.from_yaml(write_study(tmp_path), [f"training.steps={steps}"])
    return sentence(study, RunFolder(tmp_path / "runs" / "now"))


def test_gains_are_those_since_half_of_the_steps():
    early = json.dumps([{"budget": 0.25, "steps": 2, "giou": 0.1}, {"budget": 0.5, "steps": 4, "giou": 0.3}])
    rows = [
        {"steps": 8, "giou": 0.4, "early": early},
        {"steps": 4, "giou": 0.4},
        {"steps": 6, "giou": None, "early": early},
    ]
    assert gains_by_steps(rows) == {8: [pytest.approx(0.1)]}


def test_the_smallest_number_of_steps_with_small_gains_is_proposed(tmp_path):
    finished(tmp_path, {20: [0.2, 0.3, 0.1], 40: [0.01, 0.3, -0.01], 80: [0.0]})
    assert said(tmp_path, 20).endswith(
        "+0.200 at 20 (n = 3), +0.010 at 40 (n = 3), +0.000 at 80 (n = 1); this study has 20 steps, and 40 are proposed"
    )
    assert said(tmp_path, 40).endswith("the 40 steps of this study suffice")


def test_more_steps_than_any_are_proposed_where_all_still_gain(tmp_path):
    finished(tmp_path, {20: [0.2], 40: [0.1]})
    assert said(tmp_path, 40).endswith("none is below the tolerance of 0.02, so plan more than 40 steps")


def test_without_comparable_cells_nothing_is_said(tmp_path):
    assert said(tmp_path, 20) == ""
