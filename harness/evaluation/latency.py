"""Comparable latency of several models: timed in one process, in turns, on the same images.

Other load on the machine slows consecutive runs equally, so it affects all models that take turns. Models that are
timed minutes apart are affected differently. On a GPU the clock is wall time. On a CPU it is the processor time of one
thread, which equals wall time on an idle machine and excludes the time in which other processes use the core. With
several threads, every operation would wait for any thread that is interrupted.
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
"""Rounds continue until the standard error of every median is below this share of the median."""
MAX_FACTOR = 3
"""Largest number of rounds, as a multiple of `repeats`."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one model, for one image with one expression or question.

    If several models were timed, the times of a round are divided by the slowness of the round before medians are
    computed: its geometric mean over all models relative to the median round.

    Args:
        median_ms: median of runs.
        p90_ms: 90th percentile of runs, without that division.
        num_runs: number of timed runs.
        stage_ms: medians by stage; their sum may differ from the median of runs.
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
    """Time models in rounds: in a round every model runs once on the same image, in random order.

    Args:
        pipelines: of each model, over the same images in the same order, on one device.
        repeats: minimum number of rounds; there are more if times vary.
        precisions: of each model.
        max_factor: maximum number of rounds, as a multiple of `repeats`.
        warm_up: minimum number of untimed runs of each model; each model runs untimed on every image.

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
    """Use one thread, disable garbage collection, and keep the weights that autocast casts during warm-up."""
    num_threads, was_collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    torch.set_num_threads(1)
    try:
        # Autocast clears its cache of cast weights at the end of the outermost context.
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_num_threads(num_threads)
        if was_collecting:
            gc.enable()


def _timed(pipeline: Pipeline, precision: str) -> list[float]:
    """Milliseconds of each stage of one run."""
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
    """Times (rounds, models, stages) divided by the slowness of the round; unchanged for one model."""
    if times.shape[1] == 1:
        return times
    slowness = np.exp(np.log(times.sum(axis=2)).mean(axis=1))
    return times * (np.median(slowness) / slowness)[:, None, None]


def _are_precise(rounds: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether the standard errors of all medians are small, estimated from order statistics around the median."""
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
