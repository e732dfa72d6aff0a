"""The preflight runs every configuration once through all stages before training."""

from dataclasses import replace

import pytest

from harness import run
from harness.errors import HarnessError
from harness.execution import preflight as module
from harness.execution import session
from harness.execution.cells import Cells
from harness.execution.preflight import preflight, refuse_failures
from projectors.pooling import Pooling
from projectors.svp.svp import SVP


@pytest.fixture
def lines():
    return []


def test_a_configuration_runs_once_for_all_seeds_and_not_again(cells, lines):
    pooling = cells["pooling"]
    seeds = [replace(pooling, id=f"seed{seed}", seed=seed) for seed in range(3)]
    assert preflight([*seeds, cells["sspe"]], lines.append) == []
    assert len(lines) == 2
    assert "preflight 1 of 2: pooling seed 0 passed" in lines[0]
    longer = pooling.spec.training.model_copy(update={"steps": 70})
    other_length = replace(pooling, spec=pooling.spec.model_copy(update={"training": longer}))
    assert preflight([*seeds, cells["sspe"], other_length], lines.append) == []
    assert len(lines) == 2, "how long a cell trains makes no other configuration"


def test_changed_code_or_precision_is_checked_again(cells, lines):
    pooling = cells["pooling"]
    precision = {"float32": "bfloat16", "bfloat16": "float32"}[pooling.spec.training.precision]
    training = pooling.spec.training.model_copy(update={"precision": precision})
    other = replace(pooling, spec=pooling.spec.model_copy(update={"training": training}))
    preflight([pooling], lines.append)
    assert preflight([pooling, other, replace(pooling, code="edited")], lines.append) == []
    assert len(lines) == 3


def test_an_incompatible_configuration_passes(cells, lines):
    assert preflight([cells["finer"]], lines.append) == []
    assert "finer seed 0 will be skipped" in lines[0]


def test_every_failure_is_reported_at_once_and_nothing_is_trained(cells, tmp_path, monkeypatch, capsys):
    assert cells

    def broken(*_):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(Pooling, "forward", broken)
    monkeypatch.setattr(SVP, "forward", broken)
    monkeypatch.setattr(session, "_cells", lambda: _NoRun())
    command = [str(tmp_path / "study.yaml"), "--set", "seeds=[0, 1]", "--out", str(tmp_path / "run")]
    for arguments in (command, [*command, "--check"]):
        assert run.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("expected scalar type Float") == 4
        assert "arm pooling (2 cells), stage 'trained': RuntimeError: expected scalar type Float" in error
        assert "arm sam (2 cells)" in error
        assert "nothing was trained" in error
        assert not (tmp_path / "run" / "cells").exists()


class _NoRun(Cells):
    def run(self, *_):
        raise AssertionError("a cell ran")


@pytest.mark.parametrize("stage", ["score", "cost", "illustrate"])
def test_a_failure_in_a_late_stage_is_found(cells, lines, monkeypatch, stage):
    def broken(*_):
        raise RuntimeError("late")

    monkeypatch.setattr(f"harness.execution.stages.Stages.{stage}", broken)
    (failure,) = preflight([cells["pooling"]], lines.append)
    assert failure.stage in str(failure)
    assert failure.reason.endswith("RuntimeError: late\n")
    with pytest.raises(HarnessError, match="1 configurations failed the preflight on 2 images"):
        refuse_failures([failure])


def test_a_checkpoint_that_cannot_be_loaded_is_found(cells, lines, monkeypatch):
    def unreadable(*_):
        raise HarnessError("holds no such tensor")

    monkeypatch.setattr(module, "load", unreadable)
    (failure,) = preflight([cells["pooling"]], lines.append)
    assert str(failure) == "arm pooling (1 cells): holds no such tensor"
