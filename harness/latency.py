"""Latency of several models that can be compared: timed in one process, in turns, on the same images.

Whatever else the machine does slows neighbouring runs alike. Models that take turns share it, where models measured
minutes apart do not.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from harness.device import synchronize
from harness.pipeline import STAGES, Pipeline
from harness.precision import autocast

WARM_UP = 3
"""Untimed rounds, or as many as there are images, so that every model has run on every image before."""
MAX_STANDARD_ERROR = 0.015
"""Rounds go on until the standard error of every median is below this share of the median."""
MAX_ROUNDS = 5
"""Rounds end in any case after this many times the repeats asked for."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall time of one model's runs, each on one image that is asked one thing.

    Args:
        median_ms: of whole runs.
        p90_ms: ninth decile of whole runs.
        num_runs: timed runs.
        stage_ms: medians by stage; their sum need not be the median of whole runs.
    """

    median_ms: float
    p90_ms: float
    num_runs: int
    stage_ms: dict[str, float]


def time_in_turns(pipelines: Sequence[Sequence[Pipeline]], repeats: int, precisions: Sequence[str]) -> list[Latency]:
    """Times models round by round: in a round every model runs once, on the same image, in an order drawn anew.

    Args:
        pipelines: for each model, its pipelines over the same images in the same order, on one device.
        repeats: the least number of rounds; there are up to `MAX_ROUNDS` times as many where times vary.
        precisions: for each model, the precision it runs in.

    Returns:
        The latency of each model.
    """
    ends: list[list[list[float]]] = [[] for _ in pipelines]
    order, images = list(range(len(pipelines))), range(len(pipelines[0]))
    random_order = random.Random(0)
    with torch.inference_mode(), _without_interruptions(pipelines[0][0].device):
        for image in [*images] * math.ceil(WARM_UP / len(images)):
            for model in order:
                _timed(pipelines[model][image], precisions[model])
        for number in range(MAX_ROUNDS * repeats):
            random_order.shuffle(order)
            for model in order:
                ends[model].append(_timed(pipelines[model][number % len(images)], precisions[model]))
            if number + 1 >= repeats and all(_is_precise(runs) for runs in ends):
                break
    return [_summary(runs) for runs in ends]


@contextmanager
def _without_interruptions(device: torch.device) -> Iterator[None]:
    """No garbage collection; and the outermost autocast context, so that weights are cast in the warm-up only."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if was_enabled:
            gc.enable()


def _timed(pipeline: Pipeline, precision: str) -> list[float]:
    """Milliseconds from the start of one run to the end of each stage."""
    ends = []

    def lap(_: str) -> None:
        synchronize(pipeline.device)
        ends.append(1e3 * (time.perf_counter() - start))

    with autocast(precision, pipeline.device):
        synchronize(pipeline.device)
        start = time.perf_counter()
        pipeline.run(lap)
    return ends


def _is_precise(runs: Sequence[Sequence[float]]) -> bool:
    """Whether the standard error of the median run is small, from the order statistics one standard error around it."""
    totals = sorted(run[-1] for run in runs)
    spread = math.sqrt(len(totals)) / 2
    low = totals[max(0, math.floor((len(totals) - 1) / 2 - spread))]
    high = totals[min(len(totals) - 1, math.ceil((len(totals) - 1) / 2 + spread))]
    return (high - low) / 2 <= MAX_STANDARD_ERROR * statistics.median(totals)


def _summary(runs: Sequence[Sequence[float]]) -> Latency:
    ends = np.array(runs)
    stages = np.median(np.diff(ends, axis=1, prepend=0.0), axis=0)
    totals = ends[:, -1]
    return Latency(
        median_ms=float(np.median(totals)),
        p90_ms=float(np.percentile(totals, 90)),
        num_runs=len(totals),
        stage_ms=dict(zip(STAGES, stages.tolist(), strict=True)),
    )
