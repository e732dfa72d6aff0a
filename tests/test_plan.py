"""The plan of a study: a row per cell, or per group of cells in a large study."""

import io

import pytest
import torch
from rich.console import Console

from harness.planning.plan import MAX_ROWS, Planned, make_plan, plan_table
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.uninitialized import uninitialized
from projectors import Dims
from projectors.mlp import MLP
from projectors.svp.svp import SVP
from tests.small_study import STUDY, row_of, write_study

SPACE = "{projector.position.blocks: [1, 3], projector.position.queries: [1, 2]}"


def planned(tmp_path, *overrides: str, text: str = STUDY) -> tuple[Study, list[Planned]]:
    study = Study.from_yaml(write_study(tmp_path, text), overrides)
    return study, make_plan(study, RunFolder(tmp_path / "run"))


def printed(study: Study, plan: list[Planned]) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=200).print(plan_table(study, plan))
    return text.getvalue().splitlines()


def test_a_small_plan_has_a_row_per_cell(tmp_path):
    study, plan = planned(tmp_path)
    lines = printed(study, plan)
    assert all(any(each.cell.id in line for line in lines) for each in plan)
    assert len(plan) == 12


def test_a_large_plan_has_a_row_per_arm_and_point_with_counts_and_summed_time(tmp_path):
    study, plan = planned(tmp_path, f"seeds=[{', '.join(map(str, range(50)))}]")
    done = plan[0].cell
    RunFolder(tmp_path / "run").write_cell(row_of(done))
    plan = [Planned(each.cell, "done" if each.cell is done else "to run", 0.0 if each.cell is done else 120.0, 4.0)
            for each in plan]  # fmt: skip
    assert len(plan) == 300 > MAX_ROWS
    lines = printed(study, plan)
    assert len(lines) < 15
    [pooling] = [line.split() for line in lines if "pooling" in line]
    assert [word.strip("│┃ ") for word in pooling if word.strip("│┃ ")] == [
        *("pooling", "50", "4", "1", "done,", "49", "to", "run", "1.6", "h"),
    ]
    assert sum("blocks=3, queries=2" in line for line in lines) == 1
    assert any("299 of 300 cells to run" in line for line in lines)


def test_a_plan_with_too_many_points_has_a_row_per_arm(tmp_path):
    values = f"[{', '.join(map(str, range(1, 221)))}]"
    study, plan = planned(tmp_path, "seeds=[0]", text=STUDY.replace(SPACE, f"{{training.steps: {values}}}"))
    lines = printed(study, plan)
    assert len(plan) == 222
    assert len(lines) < 12
    [sspe] = [line for line in lines if "sspe" in line]
    assert "220 points" in sspe
    assert "220 to run" in sspe
    assert "unknown" in sspe


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_cells_of_unknown_time_are_counted_beside_the_sum(tmp_path, seconds):
    study, plan = planned(tmp_path, f"seeds=[{', '.join(map(str, range(50)))}]")
    plan = [Planned(each.cell, "to run", 60.0 if each.cell.seed else seconds, None) for each in plan]
    [pooling] = [line for line in printed(study, plan) if "pooling" in line]
    assert ("49 min, 1 cells unknown" if seconds is None else "50 min") in pooling


def test_a_projector_is_built_without_initial_weights_and_random_numbers():
    state = torch.get_rng_state()
    dims = Dims(vision=24, language=16, grid=(6, 6), frame=24, decoder=8, max_superpixels=5, vision_blocks=2)
    for kind in (MLP, SVP):
        with uninitialized():
            shapes = [value.shape for value in kind(kind.Config(), dims).parameters()]
        assert torch.equal(torch.get_rng_state(), state)
        assert shapes == [value.shape for value in kind(kind.Config(), dims).parameters()]
        torch.set_rng_state(state)


def test_a_truncated_normal_ends_whatever_the_uninitialized_memory_holds():
    beyond_the_limits = torch.full((4, 4), 1e9)
    with uninitialized():
        assert torch.nn.init.trunc_normal_(beyond_the_limits, std=0.02) is beyond_the_limits
    assert (beyond_the_limits == 1e9).all()
    assert torch.nn.init.trunc_normal_(beyond_the_limits, std=0.02).abs().max() < 1
