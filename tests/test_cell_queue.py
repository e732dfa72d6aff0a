"""Optuna: each point once, across restarts; sampled points; failures; importance."""

import json

import optuna
import pytest
from harness.execution.search import Search, default_url
from optuna.trial import TrialState

from harness.errors import HarnessError
from harness.study.study import Point, Study
from tests.small_study import STUDY, row_of, sampled_study, write_study


@pytest.fixture
def study(tmp_path):
    return Study.from_yaml(write_study(tmp_path))


class Points:
    """Evaluates points and remembers them."""

    def __init__(self, study, fails=(), stop_after=None, after=None):
        self.study, self.fails, self.stop_after = study, fails, stop_after
        self.seen: list[Point] = []
        self.finished: set[str] = set() if after is None else after.finished

    def seed_by_seed(self, points):
        self.begun = points

    def evaluate(self, point, trial):
        self.seen.append(point)
        if self.stop_after is not None and len(self.seen) > self.stop_after:
            raise KeyboardInterrupt
        status = self.fails.get(point.arm, "done") if self.fails else "done"
        cells = self.study.cells_of(point)
        self.finished |= {cell.id for cell in cells if status != "failed"}
        return [{**row_of(cell, status, "as the test asks"), "trial": trial} for cell in cells]

    @property
    def keys(self):
        return [(point.arm, point.to_json()) for point in self.seen]


def states(search) -> dict[str, int]:
    trials = search.optuna.get_trials()
    return {state.name: sum(trial.state == state for trial in trials) for state in {trial.state for trial in trials}}


def test_a_grid_runs_each_point_once_and_then_nothing(tmp_path, study):
    points = Points(study)
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
        assert sorted(points.begun) == [trial.number for trial in search.optuna.get_trials()]
        assert list(points.begun.values()) == points.seen
        search.run(points)
        assert states(search) == {"COMPLETE": 6}
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
    assert sorted(points.keys) == sorted((point.arm, point.to_json()) for point in study.points())


def test_values_are_means_over_seeds(tmp_path, study):
    with Search(study, default_url(tmp_path)) as search:
        search.run(Points(study))
        trials = {(trial.params["arm"], len(trial.params)): trial for trial in search.optuna.get_trials()}
        directions = [direction.name for direction in search.optuna.directions]
    rows = [row_of(cell) for cell in study.cells_of(Point("pooling"))]
    assert trials["pooling", 1].values == pytest.approx([sum(row["giou"] for row in rows) / 2, rows[0]["tokens"]])
    assert directions == ["MAXIMIZE", "MINIMIZE"]


def test_only_an_interrupted_point_runs_again(tmp_path, study):
    first = Points(study, stop_after=3)
    second = Points(study, after=first)
    with Search(study, default_url(tmp_path)) as search, pytest.raises(KeyboardInterrupt):
        search.run(first)
    with Search(study, default_url(tmp_path)) as search:
        search.run(second)
        assert states(search) == {"COMPLETE": 6, "FAIL": 1}
    assert first.keys[3] in second.keys
    assert sorted(first.keys[:3] + second.keys) == sorted((point.arm, point.to_json()) for point in study.points())


def test_a_running_trial_of_a_killed_process_is_replaced(tmp_path, study):
    with Search(study, default_url(tmp_path)) as search:
        search.optuna.enqueue_trial({"arm": "pooling"})
        search.optuna.ask()
        assert states(search) == {"RUNNING": 1}
    points = Points(study)
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
        assert states(search) == {"COMPLETE": 6, "FAIL": 1}
    assert len(points.seen) == 6


def test_failed_points_run_again_and_skipped_ones_do_not(tmp_path, study):
    first = Points(study, fails={"bbox_mlp": "failed", "pooling": "skipped"})
    with Search(study, default_url(tmp_path)) as search:
        search.run(first)
        assert states(search) == {"COMPLETE": 4, "FAIL": 1, "PRUNED": 1}
        reasons = {trial.user_attrs.get("reason") for trial in search.optuna.get_trials()}
        assert reasons == {None, "as the test asks"}
    points = Points(study, after=first)
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
    assert points.keys == [("bbox_mlp", "{}")]


def test_a_point_runs_again_if_the_result_of_a_cell_was_removed(tmp_path, study):
    points = Points(study)
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
    points.finished -= {study.cells_of(Point("pooling"))[0].id}
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
        search.run(points)
    assert points.keys[6:] == [("pooling", "{}")]


def test_a_sampled_point_whose_result_was_removed_runs_again_unchanged(tmp_path):
    study = sampled_study(tmp_path)
    points = Points(study)
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
    removed = points.seen[2]
    points.finished -= {cell.id for cell in study.cells_of(removed)}
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
        search.run(points)
    assert points.seen[1 + study.num_sampled :] == [removed]


def test_a_changed_study_is_another_study_in_the_same_storage(tmp_path, study):
    changed = Study.from_yaml(write_study(tmp_path), ["training.steps=11"])
    points = Points(changed)
    for one, worker in ((study, Points(study)), (changed, points)):
        with Search(one, default_url(tmp_path)) as search:
            search.run(worker)
    assert len(points.seen) == 6
    assert len(optuna.get_all_study_names(default_url(tmp_path))) == 2


def test_sampled_points_share_the_arms_and_keep_to_the_space(tmp_path):
    study = sampled_study(tmp_path)
    points = Points(study)
    with Search(study, default_url(tmp_path)) as search:
        search.run(points)
        assert [point.arm for point in search.points()] == [point.arm for point in points.seen]
    assert [point.arm for point in points.begun.values()] == ["pooling"], "the others are not known before they run"
    assert [point.arm for point in points.seen] == ["pooling", "sspe", "bbox_mlp", "sspe", "bbox_mlp"]
    for point in points.seen[1:]:
        assert 1e-4 <= point.values["training.learning_rate"] <= 1e-2
        assert point.values["training.steps"] in {10, 20, 30}


def test_a_resumed_sampler_adds_points_up_to_the_number_of_trials(tmp_path):
    study = sampled_study(tmp_path)
    first = Points(study, stop_after=2)
    second = Points(study, after=first)
    with Search(study, default_url(tmp_path)) as search, pytest.raises(KeyboardInterrupt):
        search.run(first)
    with Search(study, default_url(tmp_path)) as search:
        search.run(second)
        assert search.optuna.get_trials(states=(TrialState.COMPLETE,))
        search.run(second)
    assert first.keys[2] in second.keys, "the point that was interrupted comes again as it was"
    assert len({*first.keys, *second.keys}) == 1 + study.num_sampled


def test_choices_may_be_mappings(tmp_path):
    space = "{projector.position: [none, {name: sspe, blocks: 2}]}"
    text = STUDY.replace("{projector.position.blocks: [1, 3], projector.position.queries: [1, 2]}", space)
    study = Study.from_yaml(write_study(tmp_path, text), ["seeds=[0]"])
    positions = [cell.spec.projector["position"]["name"] for cell in study.cells() if cell.arm == "sspe"]
    assert positions == ["none", "sspe"]


def test_importance_names_its_method_and_finds_the_relevant_parameter(tmp_path, study):
    class Deeper(Points):
        def evaluate(self, point, trial):
            giou = point.values.get("projector.position.blocks", 0) / 3
            return [{**row, "giou": giou} for row in super().evaluate(point, trial)]

    with Search(study, default_url(tmp_path)) as search:
        assert search.importance() is None
        search.run(Deeper(study))
        importance = search.importance()
    assert json.loads(json.dumps(importance)) == importance
    assert importance["method"].startswith("PED-ANOVA")
    shares = importance["importance"]["giou"]
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == {"projector.position.blocks", "projector.position.queries"}
    assert shares["projector.position.blocks"] > 0.9
    assert "tokens" not in importance["importance"], "every point has as many"


def test_a_storage_that_cannot_be_opened_is_an_error_of_the_user(tmp_path, study):
    for url in ("optuna.db", "nosuch://x", f"sqlite:///{tmp_path}/missing/optuna.db"):
        with pytest.raises(HarnessError, match="storage"):
            Search(study, url)
    for url in ("nosuch://ann:secret@host/x", "mysql+nosuch://ann:secret@host/x", "ann:secret@host/x"):
        with pytest.raises(HarnessError, match="storage") as caught:
            Search(study, url)
        assert "secret" not in str(caught.value)


def test_objectives_keep_their_names_in_the_dashboard(tmp_path, study):
    for _ in range(2):
        with Search(study, default_url(tmp_path)) as search:
            assert search.optuna.metric_names == ["giou", "tokens"]
