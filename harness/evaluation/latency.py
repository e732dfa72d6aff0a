"""Latency of several models that can be compared: timed in one process, in turns, on the same images.

Other load on the machine slows neighbouring runs alike, and models that take turns share it; models that are timed
minutes apart do not. On a GPU the clock is wall time. On a CPU it is the processor time of one thread, which is the
wall time of that thread on an idle machine: it does not count the time that other processes hold the core, whereas in
wall time several threads wait in every operation for whichever of them has been interrupted.
"""

import gc
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from harness.evaluation.pipeline import Pipeline
from harness.results.metrics import PIPELINE_STAGES
from harness.system.device import synchronize
from harness.system.precision import autocast

WARM_UP = 3
MAX_STANDARD_ERROR = 0.015
"""Rounds go on until the standard error of every median is below this share of the median."""
MAX_FACTOR = 3
"""Rounds end in any case after this many times the repeats asked for."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one model's runs, each on one image that is asked one thing.

    Where several models were timed, the times of a round are divided by how much slower the round was than the median
    round, by the geometric mean over all models, before medians are taken.

    Args:
        median_ms: of whole runs.
        p90_ms: ninth decile of whole runs, as they were timed.
        num_runs: timed runs.
        stage_ms: medians by stage; their sum need not be the median of whole runs.
    """

    median_ms: float
    p90_ms: float
    num_runs: int
    stage_ms: dict[str, float]


def time_in_turns(
    pipelines: Sequence[Sequence[Pipeline]],
    repeats: int,
    precisions: Sequence[str],
    max_factor: int = MAX_FACTOR,
    warm_up: int = WARM_UP,
) -> list[Latency]:
    """Times models round by round: in a round every model runs once, on the same image, in an order drawn anew.

    Args:
        pipelines: for each model, its pipelines over the same images in the same order, on one device.
        repeats: the least number of rounds; where times vary there are more.
        precisions: for each model, the precision it runs in.
        max_factor: at most so many times as many rounds.
        warm_up: least number of untimed runs of each model; each also runs untimed on every image.

    Returns:
        The latency of each model.
    """
    order, images = list(range(len(pipelines))), range(len(pipelines[0]))
    random_order = random.Random(0)
    rounds: list[list[list[float]]] = []
    with torch.inference_mode(), _without_interruptions(pipelines[0][0].device):
        for image in [*images] * math.ceil(warm_up / len(images)):
            for model in order:
                _timed(pipelines[model][image], precisions[model])
        while len(rounds) < repeats or (len(rounds) < max_factor * repeats and not _are_precise(rounds)):
            random_order.shuffle(order)
            image = len(rounds) % len(images)
            stages = {model: _timed(pipelines[model][image], precisions[model]) for model in order}
            rounds.append([stages[model] for model in range(len(pipelines))])
    return _summaries(rounds)


@contextmanager
def _without_interruptions(device: torch.device) -> Iterator[None]:
    """One thread, no garbage collection, and weights that autocast casts once are cast in the warm-up only."""
    num_threads, was_collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    torch.set_num_threads(1)
    try:
        # Autocast forgets the weights that it has cast at the end of the outermost context.
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_num_threads(num_threads)
        if was_collecting:
            gc.enable()


def _timed(pipeline: Pipeline, precision: str) -> list[float]:
    """Milliseconds that each stage of one run takes."""
    clock = time.perf_counter if pipeline.device.type == "cuda" else time.process_time
    ends = []

    def lap(_: str) -> None:
        synchronize(pipeline.device)
        ends.append(clock())

    with autocast(precision, pipeline.device):
        synchronize(pipeline.device)
        start = clock()
        pipeline.run(lap)
    return [1e3 * (end - before) for before, end in zip([start, *ends], ends, strict=False)]


def _adjusted(times: np.ndarray) -> np.ndarray:
    """Times (rounds, models, stages) as if every round had been as slow as the median one; unchanged for one model."""
    if times.shape[1] == 1:
        return times
    slowness = np.exp(np.log(times.sum(axis=2)).mean(axis=1))
    return times * (np.median(slowness) / slowness)[:, None, None]


def _are_precise(rounds: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether the standard errors of all medians are small, by the order statistics one of them below and above."""
    totals = np.sort(_adjusted(np.array(rounds)).sum(axis=2), axis=0)
    middle, spread = (len(totals) - 1) / 2, math.sqrt(len(totals)) / 2
    low, high = totals[max(0, math.floor(middle - spread))], totals[min(len(totals) - 1, math.ceil(middle + spread))]
    return bool(((high - low) / 2 <= MAX_STANDARD_ERROR * np.median(totals, axis=0)).all())


def _summaries(rounds: Sequence[Sequence[Sequence[float]]]) -> list[Latency]:
    times = np.array(rounds)
    adjusted = _adjusted(times)
    medians, stages = np.median(adjusted.sum(axis=2), axis=0), np.median(adjusted, axis=0)
    p90 = np.percentile(times.sum(axis=2), 90, axis=0)
    return [
        Latency(
            float(medians[model]), float(p90[model]), len(rounds), dict(zip(PIPELINE_STAGES, row.tolist(), strict=True))
        )
        for model, row in enumerate(stages)
    ]
