"""Finished stages of a cell are kept after a later failure, an interruption or a kill."""

import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from harness import run
from harness.execution import session
from harness.execution.cell import run_cell
from harness.execution.cells import Cells
from harness.execution.run_study import execute
from harness.monitoring.progress import Progress
from harness.results.run_folder import STAGES, Row, RunFolder
from harness.study.study import Cell, Study
from harness.training.trainer import Trainer
from tests.small_study import quiet

METHODS = dict(zip(STAGES, ("train", "score", "cost", "illustrate"), strict=True))
SCORES = ("giou", "giou_teacher_forced", "ciou", "tokens", "curve", "flops", "giou_shuffled", "giou_swapped_tokens")
ARMS = ("pooling", "sspe")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables


@pytest.fixture
def study_file(cells, tmp_path) -> Path:
    """The study of `cells` with two of its arms."""
    others = tuple(f"  {arm}:" for arm in cells if arm not in ARMS)
    path = tmp_path / "study.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(others)))
    return path


def no_training(*_: object) -> None:
    raise AssertionError("trained again")


@pytest.mark.parametrize("stage", STAGES)
def test_a_failed_stage_keeps_the_earlier_ones_and_the_next_run_resumes(cells, folder, monkeypatch, stage):
    whole = run_cell(cells["sspe"], RunFolder(folder.path.with_name("whole")), quiet())
    with monkeypatch.context() as faulty:
        faulty.setattr(f"harness.execution.stages.Stages.{METHODS[stage]}", no_training)
        row = run_cell(cells["sspe"], folder, quiet())
    assert (row["status"], row["failed_stage"]) == ("failed", stage)
    assert "trained again" in row["reason"]
    assert row.get("stage") == (STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None)
    assert ("curve" in row, "giou" in row, "flops" in row) == tuple(stage not in STAGES[: i + 1] for i in range(3))
    assert folder.row(row["cell"])["failed_stage"] == stage
    if stage != STAGES[0]:
        monkeypatch.setattr(Trainer, "run", no_training)
    again = run_cell(cells["sspe"], folder, quiet())
    assert (again["status"], again["reason"], again["failed_stage"]) == ("done", "", "")
    assert {name: again[name] for name in SCORES} == {name: whole[name] for name in SCORES}
    assert again["wall_seconds"] > row["wall_seconds"], "the time of both runs"
    assert len(pd.read_parquet(folder.cell_samples(row["cell"]))) == 12


def test_an_interrupted_cell_is_unfinished_in_the_tables_and_resumes(cells, study_file, folder, monkeypatch):
    study = Study.from_yaml(study_file)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("harness.execution.stages.Stages.cost", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(study, folder, None, Cells(), quiet())
    row, *others = pd.read_parquet(folder.results).to_dict("records")
    assert others == []
    assert (row["status"], row["stage"]) == ("unfinished", "scored")
    assert row["giou"] == folder.row(cells["pooling"].id)["giou"]
    with monkeypatch.context() as untrained:
        untrained.setattr(Trainer, "run", no_training)
        assert execute(study, folder, None, Cells(), quiet()).num_failed == 1, "the arm that had not begun"
    assert pd.read_parquet(folder.results)["status"].tolist() == ["done", "failed"]


def test_an_interrupted_run_leaves_tables_and_a_report_and_exits_with_130(study_file, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the second cell, then --report-only."""
    place = tmp_path / "run"
    command = [str(study_file), "--set", "evaluation.gallery_images=1", "--out", str(place)]
    monkeypatch.setattr(session, "_cells", lambda: _InterruptedCells(after=1))
    assert run.main(command) == 130
    assert "finished stages are kept; run the same command again to resume" in capsys.readouterr().err
    folder = RunFolder(place)
    assert pd.read_parquet(folder.results)["status"].tolist() == ["done"]
    assert folder.report.exists()
    folder.report.unlink()
    folder.results.unlink()
    assert run.main([*command, "--report-only"]) == 0
    assert folder.report.exists()
    assert len(pd.read_parquet(folder.results)) == 1


def test_a_full_disk_is_one_message_and_keeps_finished_cells(study_file, tmp_path, monkeypatch, capsys):
    place = tmp_path / "run"
    monkeypatch.setattr(
        session, "_cells", lambda: _InterruptedCells(after=1, error=OSError(28, "No space left on device"))
    )
    command = [str(study_file), "--out", str(place)]
    assert run.main(command) == 2
    error = capsys.readouterr().err
    assert "no space left on the disk" in error
    assert "Traceback" not in error
    assert len(pd.read_parquet(RunFolder(place).results)) == 1


def test_a_full_disk_in_a_stage_is_no_failure_of_the_cell(cells, folder, monkeypatch):
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("harness.execution.stages.Stages.score", no_space)
        with pytest.raises(OSError, match="No space left"):
            run_cell(cells["sspe"], folder, quiet())
    assert folder.row(cells["sspe"].id)["status"] == "unfinished"


class _InterruptedCells(Cells):
    """Cells of which some run before an error ends the study."""

    def __init__(self, after: int, error: BaseException | None = None) -> None:
        self.left = after
        self.error = error or KeyboardInterrupt()

    def check(self, *_: object) -> None:
        """Passes."""

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:
        """Raises when no cell is left."""
        if not self.left:
            raise self.error
        self.left -= 1
        return super().run(cell, folder, progress)


@pytest.mark.slow
def test_a_run_killed_in_each_stage_of_each_cell_trains_nothing_twice(study_file, folder, tmp_path):
    """Sends SIGKILL after a stage has finished and before its row is written."""
    study = Study.from_yaml(study_file)
    planned = study.cells()
    assert [cell.arm for cell in planned] == list(ARMS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_stages"])
    log = tmp_path / "trained.log"
    for cell in planned:
        for stage in STAGES:
            process = context.Process(target=_die, args=(study_file, folder.path, log, cell.id, stage))
            process.start()
            process.join(timeout=120)
            assert process.exitcode == -signal.SIGKILL, (cell.arm, stage)
            if folder.results.exists():
                table = pd.read_parquet(folder.results)
                assert set(table["cell"]) <= {cell.id for cell in planned}
                assert table.loc[table["status"] == "done", "giou"].notna().all()
    outcome = execute(study, folder, None, Cells(), quiet())
    assert (outcome.num_failed, len(outcome.cells)) == (0, 2)
    results = pd.read_parquet(folder.results)
    assert results["status"].tolist() == ["done", "done"]
    assert results["latency_round"].nunique() == 1
    assert Counter(log.read_text().split()) == dict.fromkeys((cell.id for cell in planned), 1)
    assert pd.read_parquet(folder.samples).groupby("cell").size().tolist() == [12, 12]


def _die(study: Path, out: Path, log: Path, cell_id: str, stage: str) -> None:
    """Runs the study, logs each training, and kills itself before the row of a stage is written."""
    write_cell, train = RunFolder.write_cell, Trainer.run

    def write_or_die(self: RunFolder, row: Row, *samples: pd.DataFrame | None) -> None:
        if row["cell"] == cell_id and row.get("stage") == stage and row.get("command") is None:
            os.kill(os.getpid(), signal.SIGKILL)
        write_cell(self, row, *samples)

    def logged(self: Trainer, examples: object) -> object:
        is_trained = self.loop.checkpoint is not None and self.loop.checkpoint.exists()
        curve = train(self, examples)  # type: ignore[arg-type]
        if not is_trained:
            with log.open("a") as file:
                file.write(f"{self.loop.checkpoint.name.partition('.')[0]}\n")  # type: ignore[union-attr]
        return curve

    RunFolder.write_cell, Trainer.run = write_or_die, logged  # type: ignore[method-assign, assignment]
    execute(Study.from_yaml(study), RunFolder(out), None, Cells(), quiet())
