"""The queue of cells: each cell once, across restarts and processes; sampled points; failures; importance."""

import json
from collections import Counter

import pytest
from optuna.trial import TrialState

from harness.errors import HarnessError
from harness.queue.cell_queue import CellQueue
from harness.queue.storage import default_path, repair
from harness.study.study import Study
from tests.small_study import STUDY, row_of, sampled_study, write_study


@pytest.fixture
def study(tmp_path):
    return Study.from_yaml(write_study(tmp_path))


def drain(queue, rows, fails=(), skips=(), stop_after=None):
    """Run every waiting cell; returns the cells in order and keeps the rows of finished ones in `rows`."""
    ran = []
    while (stop_after is None or len(ran) < stop_after) and (claim := queue.claim()) is not None:
        status = "failed" if claim.cell.arm in fails else "skipped" if claim.cell.arm in skips else "done"
        row = row_of(claim.cell, status, "as the test asks")
        queue.name(claim)
        queue.tell(claim, row)
        if status != "failed":
            rows[claim.cell.id] = row
        ran.append(claim.cell)
    return ran


def states(queue) -> dict[str, int]:
    return Counter(trial.state.name for trial in queue.optuna.get_trials())


def test_each_cell_is_claimed_once_and_seed_by_seed(tmp_path, study):
    rows = {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        ran = drain(queue, rows)
        queue.fill(rows)
        assert drain(queue, rows) == []
        assert states(queue) == {"COMPLETE": 12}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        assert queue.claim() is None
    assert sorted(cell.id for cell in ran) == sorted(cell.id for cell in study.cells())
    assert [cell.seed for cell in ran] == [0] * 6 + [1] * 6


def test_arms_in_another_order_keep_their_results(tmp_path, study):
    rows = {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        drain(queue, rows, stop_after=5)
    text = (tmp_path / "small.yaml").read_text()
    first = next(line for line in text.splitlines(keepends=True) if line.startswith("  pooling:"))
    (tmp_path / "small.yaml").write_text(text.replace(first, "").replace("search:", f"{first}search:"))
    reordered = Study.from_yaml(tmp_path / "small.yaml")
    assert list(reordered.arms) != list(study.arms)
    assert {cell.id for cell in reordered.cells()} == {cell.id for cell in study.cells()}
    with CellQueue(reordered, default_path(tmp_path)) as queue:
        queue.fill(rows)
        assert len(drain(queue, rows)) == 7


def test_the_values_of_a_trial_are_the_objectives_of_its_cell(tmp_path, study):
    rows = {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        drain(queue, rows)
        for trial in queue.optuna.get_trials():
            row = rows[trial.user_attrs["cell"]]
            assert trial.values == [row["giou"], row["tokens"]]
        assert [direction.name for direction in queue.optuna.directions] == ["MAXIMIZE", "MINIMIZE"]
        assert queue.optuna.metric_names == ["giou", "tokens"]


def test_two_processes_never_claim_the_same_cell(tmp_path, study):
    with CellQueue(study, default_path(tmp_path)) as one, CellQueue(study, default_path(tmp_path)) as other:
        one.fill({})
        claims = [queue.claim() for _ in range(6) for queue in (one, other)]
        assert len({claim.cell.id for claim in claims}) == 12
        assert one.claim() is None
        assert other.claim() is None


def test_a_released_cell_and_that_of_a_dead_worker_are_claimed_again(tmp_path, study):
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill({})
        released, dead = queue.claim(), queue.claim()
        queue.name(dead)
        queue.release(released)
        assert queue.running() == {dead.trial: dead.cell.id}
        assert queue.num_deaths(dead.trial) == 0
        queue.return_dead(dead.trial)
        rest = []
        while (claim := queue.claim()) is not None:
            rest.append(claim)
        assert [claim.cell for claim in rest[:2]] == [released.cell, dead.cell], "they keep their place"
        assert [claim.attempts for claim in rest[:2]] == [0, 1]
        assert queue.num_deaths(rest[1].trial) == 1


def test_failed_cells_run_again_and_skipped_ones_do_not(tmp_path, study):
    rows = {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        drain(queue, rows, fails=("bbox_mlp",), skips=("pooling",))
        assert states(queue) == {"COMPLETE": 8, "FAIL": 2, "PRUNED": 2}
        reasons = {trial.user_attrs.get("reason") for trial in queue.optuna.get_trials()}
        assert reasons == {None, "as the test asks"}
        queue.fill(rows)
        assert [cell.arm for cell in drain(queue, rows)] == ["bbox_mlp"] * 2


def test_a_cell_whose_row_was_removed_runs_again(tmp_path, study):
    rows = {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        drain(queue, rows)
        removed = study.cells()[3]
        del rows[removed.id]
        queue.fill(rows)
        assert [cell.id for cell in drain(queue, rows)] == [removed.id]


def test_a_changed_study_is_another_study_in_the_same_storage(tmp_path, study):
    changed = Study.from_yaml(write_study(tmp_path), ["training.steps=11"])
    for one in (study, changed):
        with CellQueue(one, default_path(tmp_path)) as queue:
            queue.fill({})
            assert len(drain(queue, {})) == 12


def test_sampled_points_share_the_arms_and_keep_to_the_space(tmp_path):
    study, rows = sampled_study(tmp_path), {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        ran = drain(queue, rows)
        points = queue.points()
    assert len({cell.id for cell in ran}) == len(ran) == 2 * (1 + study.num_sampled)
    assert Counter(point.arm for point in points) == {"pooling": 1, "sspe": 2, "bbox_mlp": 2}
    for point in points[1:]:
        assert 1e-4 <= point.values["training.learning_rate"] <= 1e-2
        assert point.values["training.steps"] in {10, 20, 30}


def test_sampled_points_of_one_worker_do_not_depend_on_interruptions(tmp_path):
    study, found = sampled_study(tmp_path), []
    for name, stops in (("whole", [None]), ("parts", [3, 4, None])):
        rows = {}
        for stop in stops:
            with CellQueue(study, tmp_path / name) as queue:
                queue.fill(rows)
                drain(queue, rows, stop_after=stop)
                points = queue.points()
        found.append([(point.arm, point.to_json()) for point in points])
        assert len(rows) == 2 * (1 + study.num_sampled)
    assert found[0] == found[1]


def test_sampled_points_and_importance_survive_the_loss_of_the_storage(tmp_path):
    study, rows = sampled_study(tmp_path), {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        drain(queue, rows)
        importance = queue.importance(rows)
        points = {point.to_json() for point in queue.points()}
    assert importance is not None
    default_path(tmp_path).unlink()
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        assert queue.claim() is None
        assert {point.to_json() for point in queue.points()} == points
        assert queue.importance(rows) == importance


def test_choices_may_be_mappings(tmp_path):
    space = "{projector.position: [none, {name: sspe, blocks: 2}]}"
    text = STUDY.replace("{projector.position.blocks: [1, 3], projector.position.queries: [1, 2]}", space)
    study = Study.from_yaml(write_study(tmp_path, text), ["seeds=[0]"])
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill({})
        cells = [queue.claim().cell for _ in study.cells()]
        assert queue.claim() is None
    assert [cell.spec.projector["position"]["name"] for cell in cells if cell.arm == "sspe"] == ["none", "sspe"]


def test_importance_names_its_method_and_finds_the_relevant_parameter(tmp_path, study):
    rows = {}
    with CellQueue(study, default_path(tmp_path)) as queue:
        assert queue.importance(rows) is None
        queue.fill(rows)
        for cell in drain(queue, rows):
            rows[cell.id]["giou"] = cell.point.get("projector.position.blocks", 0) / 3
        importance = queue.importance(rows)
    assert json.loads(json.dumps(importance)) == importance
    assert importance["method"].startswith("PED-ANOVA")
    shares = importance["importance"]["giou"]
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == {"projector.position.blocks", "projector.position.queries"}
    assert shares["projector.position.blocks"] > 0.9
    assert "tokens" not in importance["importance"], "every point has as many"


def test_sqlite_is_a_storage_for_one_process(tmp_path, study):
    rows = {}
    with CellQueue(study, f"sqlite:///{tmp_path}/optuna.db") as queue:
        queue.fill(rows)
        assert len(drain(queue, rows)) == 12
        assert len(queue.optuna.get_trials(states=(TrialState.COMPLETE,))) == 12


def test_a_storage_that_cannot_be_opened_is_an_error_of_the_user(tmp_path, study):
    for url in ("optuna.db", "nosuch://x", f"sqlite:///{tmp_path}/missing/optuna.db"):
        with pytest.raises(HarnessError, match="storage"):
            CellQueue(study, url)
    for url in ("nosuch://ann:secret@host/x", "mysql+nosuch://ann:secret@host/x", "ann:secret@host/x"):
        with pytest.raises(HarnessError, match="storage") as caught:
            CellQueue(study, url)
        assert "secret" not in str(caught.value)


def test_a_damaged_journal_is_moved_aside_and_filled_from_the_rows(tmp_path, study):
    rows, damage = {}, b'{"op_code": 4, "wor{"op_code": 5}\n'
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        drain(queue, rows, stop_after=5)
    repair(tmp_path)
    assert [path.name for path in tmp_path.glob("optuna.*")] == ["optuna.journal"]
    with default_path(tmp_path).open("ab") as file:
        file.write(damage)
    repair(tmp_path)
    assert len(list(tmp_path.glob("optuna.damaged-*"))) == 1
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill(rows)
        assert len(drain(queue, rows)) == 7


def test_a_cell_whose_row_was_written_as_its_worker_died_has_one_finished_trial(tmp_path, study):
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill({})
        claim = queue.claim()
        queue.name(claim)
        rows = {claim.cell.id: row_of(claim.cell)}
        queue.release_dead(claim.trial)
        queue.fill(rows)
        drain(queue, rows)
        assert states(queue) == {"COMPLETE": 12, "FAIL": 1}


def test_a_cell_that_two_processes_give_back_is_enqueued_once(tmp_path, study):
    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill({})
        claim = queue.claim()
        queue.return_dead(claim.trial)
        assert len(drain(queue, {})) == 12
        queue.release(claim)
        assert not queue.name(claim), "the trial belongs to nobody"
        assert drain(queue, {}) == []
        assert states(queue) == {"COMPLETE": 12, "FAIL": 1}


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_process_that_dies_while_it_gives_a_cell_back_loses_none(tmp_path, study, monkeypatch, has_ended):
    end = CellQueue._end

    def die(*arguments: object) -> None:
        if has_ended:
            end(*arguments)
        raise KeyboardInterrupt

    with CellQueue(study, default_path(tmp_path)) as queue:
        queue.fill({})
        claim = queue.claim()
        with monkeypatch.context() as dying:
            dying.setattr(CellQueue, "_end", die)
            with pytest.raises(KeyboardInterrupt):
                queue.return_dead(claim.trial)
        queue.return_dead(claim.trial)
        assert len(drain(queue, {})) == 12
