"""Models that are timed in turns: order and number of rounds, and independence of the load of the machine."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, pairwise

import pytest
import torch

from harness.evaluation import latency
from harness.evaluation.latency import MAX_FACTOR, time_in_turns
from harness.evaluation.pipeline import Pipeline
from harness.results.metrics import PIPELINE_STAGES
from tests.tiny import FixedBatches, tiny_segmenter


class Clock:
    """A clock that a run advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency.time, "process_time", clock)
    return clock


class Watched(Pipeline):
    """A pipeline whose run calls a function in every stage."""

    def __init__(self, number: int, run: Callable[[str], None]) -> None:
        segmenter = tiny_segmenter()
        batches = FixedBatches(segmenter.llm)
        super().__init__(segmenter, batches, batches.examples[number])
        self.watch = run

    def run(self, lap: Callable[[str], None]) -> None:
        for stage in PIPELINE_STAGES:
            self.watch(stage)
            lap(stage)


def _taking(clock: Clock, times_ms: Iterator[float]) -> Watched:
    """A pipeline whose runs take these milliseconds, a quarter in `vision` and the rest in `llm`."""
    state = {"total": 0.0}

    def run(stage: str) -> None:
        if stage == "vision":
            state["total"] = next(times_ms)
            clock.now += state["total"] / 4000
        if stage == "llm":
            clock.now += 3 * state["total"] / 4000

    return Watched(0, run)


def test_models_take_turns_on_the_same_images_in_changing_orders():
    runs: list[tuple[str, int]] = []

    def watched(name: str, number: int) -> Watched:
        return Watched(number, lambda stage: runs.append((name, number)) if stage == "vision" else None)

    time_in_turns([[watched(name, 0), watched(name, 1)] for name in "abc"], 20, ["float32"] * 3)
    rounds = [runs[start : start + 3] for start in range(0, len(runs), 3)]
    assert all(sorted(name for name, _ in each) == ["a", "b", "c"] for each in rounds)
    assert all(len({number for _, number in each}) == 1 for each in rounds)
    images = [each[0][1] for each in rounds]
    assert all(one != other for one, other in pairwise(images))
    assert len({tuple(name for name, _ in each) for each in rounds[4:]}) == 6


def test_quantiles_are_of_timed_runs_only(clock):
    times = iter([*[9000.0] * latency.WARM_UP, *range(1000, 1011)])
    (found,) = time_in_turns([[_taking(clock, times)]], 11, ["float32"])
    assert found.median_ms == pytest.approx(1005)
    assert found.p90_ms == pytest.approx(1009)
    assert found.num_runs == 11
    assert found.stage_ms == pytest.approx(
        {**dict.fromkeys(PIPELINE_STAGES, 0), "vision": 1005 / 4, "llm": 3 * 1005 / 4}
    )


def test_rounds_continue_while_any_median_is_uncertain(clock):
    steady, varying, wild = [50.0], [50.0, 55.0, 45.0, 52.0, 50.0, 48.0, 50.0], [10.0, 100.0]
    assert _num_rounds(clock, steady) == 10
    assert 10 < _num_rounds(clock, varying) < MAX_FACTOR * 10
    assert 10 < _num_rounds(clock, steady, varying) < MAX_FACTOR * 10
    assert _num_rounds(clock, wild) == _num_rounds(clock, steady, wild) == MAX_FACTOR * 10


def _num_rounds(clock: Clock, *models: list[float]) -> int:
    found = time_in_turns([[_taking(clock, cycle(times))] for times in models], 10, ["float32"] * len(models))
    assert len({each.num_runs for each in found}) == 1
    return found[0].num_runs


def test_a_slow_round_changes_no_comparison(clock):
    """One model takes twice as long as the other, and most rounds are slow."""
    slowness = [1.0, 3.0, 2.0, 2.0, 7.0, 5.0, 2.0, 1.5, 4.0, 2.0]
    rounds = [1.0] * latency.WARM_UP + slowness
    pipelines = [[_taking(clock, cycle([each * own for each in rounds]))] for own in (20.0, 40.0)]
    fast, slow = time_in_turns(pipelines, len(slowness), ["float32"] * 2)
    assert (fast.num_runs, slow.num_runs) == (10, 10)
    assert (fast.median_ms, slow.median_ms) == pytest.approx((40, 80))
    assert fast.stage_ms["vision"] == pytest.approx(10)
    assert slow.p90_ms == pytest.approx(40 * 5.2)


def test_runs_use_one_thread_without_garbage_collection_and_both_are_restored(set_threads):
    set_threads(2)
    states = []
    (found,) = time_in_turns(
        [[Watched(0, lambda _: states.append((gc.isenabled(), torch.get_num_threads())))]], 1, ["float32"]
    )
    assert set(states) == {(False, 1)}
    assert (gc.isenabled(), torch.get_num_threads()) == (True, 2)
    assert found.num_runs >= 1

    def broken(_: str) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        time_in_turns([[Watched(0, broken)]], 1, ["float32"])
    assert (gc.isenabled(), torch.get_num_threads()) == (True, 2)


def test_each_model_runs_in_its_own_precision():
    casts: list[list[bool]] = [[], []]
    pipelines = [[Watched(0, lambda _, own=own: own.append(torch.is_autocast_enabled("cpu")))] for own in casts]
    time_in_turns(pipelines, 1, ["float32", "bfloat16"])
    assert [set(own) for own in casts] == [{False}, {True}]


@pytest.mark.slow
def test_a_busy_core_causes_no_difference_between_two_copies_of_a_model():
    """The standard error of the difference may reach .03 of the median over 40 rounds, and .013 over 200."""
    models = [_tiny(), _tiny()]
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            first, second = time_in_turns(models, 200, ["float32"] * 2)
        finally:
            busy.kill()
    assert first.median_ms == pytest.approx(second.median_ms, rel=0.05)


def _tiny() -> list[Pipeline]:
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    batches = FixedBatches(segmenter.llm)
    return [Pipeline(segmenter, batches, example) for example in batches.examples]
