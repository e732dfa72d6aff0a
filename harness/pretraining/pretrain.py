"""Hyperparameters, optimisers and output files that the pretraining of SAM and of CLIP share."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from harness.training.loop import Interval, Optimization, Point, Task, TrainingLoop
from harness.training.muon import Muon
from harness.training.schedules import WarmupStableDecay

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Length, seed and learning rates of a pretraining.

    Attributes:
        steps: of the whole training.
        learning_rate, muon_learning_rate: of AdamW and Muon between warm-up and cooldown.
        warmup: steps over which the learning rate rises.
        cooldown: share of the steps over which it falls to zero.
    """

    steps: int
    seed: int = 0
    learning_rate: float = 2e-3
    muon_learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup: int = 50
    cooldown: float = 0.4


def linear_weights(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Weights of the linear layers among these modules."""
    weights = [module.weight for module in modules if isinstance(module, nn.Linear)]
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]


def build_optimization(
    parameters: Iterable[nn.Parameter], matrices: Sequence[nn.Parameter], options: Hyperparameters
) -> Optimization:
    """Muon for these matrices and AdamW for the other parameters, each with its own gradient clipping."""
    others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
    optimizers = [
        torch.optim.AdamW(others, options.learning_rate, (0.9, 0.98), weight_decay=options.weight_decay),
        Muon(matrices, options.muon_learning_rate, weight_decay=options.weight_decay),
    ]
    schedules = [WarmupStableDecay(options.warmup, options.steps, options.cooldown).of(each) for each in optimizers]
    return Optimization(optimizers, schedules, [others, matrices], clip_norm=1.0)


def pretrain(task: Task, optimization: Optimization, steps: int, out: Path, report_every: Interval) -> TrainingLoop:
    """Trains up to step `steps`, from the checkpoint in `out` if there is one.

    Args:
        out: folder in which `checkpoint.pt` and `curve.jsonl` are written.
        report_every: between two checkpoints, each with one line of the curve.
    """

    def write_point(point: Point) -> None:
        line = {"step": point["step"], "seconds": round(loop.seconds), **point}
        text = json.dumps({key: round(value, 4) for key, value in line.items()})
        logger.info(text)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "curve.jsonl").open("a") as file:
            file.write(f"{text}\n")

    loop = TrainingLoop(task, torch.device("cpu"), write_point, report_every, out / "checkpoint.pt")
    loop.restore()
    loop.run(optimization, range(steps))
    return loop
