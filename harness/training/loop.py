"""The training loop: optimiser steps, a curve of averaged losses, checkpoints and resuming.

The segmenter's training and the pretraining of SAM and CLIP share it. Each is a `Task`: it computes gradients and
holds the parameters.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from harness.errors import HarnessError
from harness.system.files import replace_file

VERSION = 4
"""Of the layout of a training checkpoint."""
Point = dict[str, float]
"""A point of a training curve: its step, and means since the point before."""


class Task(Protocol):
    """A model in training."""

    def backward(self, step: int) -> dict[str, Tensor]:
        """Adds the gradients of a step's objective; returns the scalars that the curve averages."""

    def curve_point(self, averages: dict[str, Tensor]) -> Point:
        """The values of a point of the curve, from the means of those scalars since the point before."""

    def state_dict(self) -> dict[str, Any]:
        """Parameters, and any other state that a resumed training requires."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


@dataclass(frozen=True, slots=True)
class Optimization:
    """Updates parameters from their gradients.

    Attributes:
        schedules: one per optimiser, in the same order.
        clip_groups: parameters whose gradients are clipped together; each group has its own norm.
        clip_norm: the largest norm of a group's gradients.
    """

    optimizers: Sequence[Optimizer]
    schedules: Sequence[LRScheduler]
    clip_groups: Sequence[Sequence[nn.Parameter]]
    clip_norm: float

    def update(self) -> None:
        """Gradient clipping, and one step of every optimiser and schedule."""
        for group in self.clip_groups:
            torch.nn.utils.clip_grad_norm_(group, self.clip_norm)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """States of the optimisers, then of the schedules."""
        return [part.state_dict() for part in self._parts()]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restores what `state_dict` returned."""
        for part, state in zip(self._parts(), states, strict=True):
            part.load_state_dict(state)

    def _parts(self) -> list[Any]:
        return [*self.optimizers, *self.schedules]


@dataclass(slots=True)
class Interval:
    """Either a number of steps or a number of seconds since the last time it was due."""

    steps: int | None = None
    seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic, init=False)

    def is_due(self, step: int) -> bool:
        """Whether the interval ends after this step."""
        if self.steps is not None:
            return step % self.steps == 0
        return time.monotonic() - self._since >= self.seconds

    def restart(self) -> None:
        """Counts seconds from now on."""
        self._since = time.monotonic()


class TrainingLoop:
    """Runs the steps of a task.

    Args:
        device: of the task's losses.
        on_point: called with each new point of the curve.
        report_every: between two points of the curve; the last step always has one.
        checkpoint: file from which an interrupted training continues with the same result; None for no checkpoints.
        save_every: between two checkpoints; None writes one after each point of the curve.
        is_writer: whether this process writes the checkpoint; others only continue from it.
    """

    def __init__(
        self,
        task: Task,
        device: torch.device,
        on_point: Callable[[Point], None],
        report_every: Interval,
        checkpoint: Path | None = None,
        save_every: Interval | None = None,
        is_writer: bool = True,
    ) -> None:
        self.task = task
        self.device = device
        self.on_point = on_point
        self.report_every = report_every
        self.checkpoint = checkpoint
        self.save_every = save_every
        self.is_writer = is_writer
        self.step = 0
        self.num_run = 0
        self.seconds = 0.0
        self.curve: list[Point] = []
        self._window: list[dict[str, Tensor]] = []
        self._saved_optimization: list[dict[str, Any]] | None = None
        self._branch: dict[str, Any] | None = None

    @property
    def branch_stop(self) -> int | None:
        """The last step of the branch that is running; None outside a branch."""
        return None if self._branch is None else self._branch["stop"]

    def run(self, optimization: Optimization, steps: range) -> None:
        """Runs the remaining steps of this range; a loop restored within the range restores the optimisers too."""
        if self.step >= steps.stop:
            return
        if self._saved_optimization is not None and self.step > steps.start:
            optimization.load_state_dict(self._saved_optimization)
        self._saved_optimization = None
        while self.step < steps.stop:
            self._train_step(optimization)
            has_point = self.step == steps.stop or self.report_every.is_due(self.step)
            if has_point:
                self._report()
            is_save_due = has_point if self.save_every is None else self.save_every.is_due(self.step)
            if is_save_due:
                self.save(optimization)

    def _train_step(self, optimization: Optimization) -> None:
        started = time.perf_counter()
        parts = self.task.backward(self.step)
        optimization.update()
        self._window.append({name: part.detach() for name, part in parts.items()})
        self.step += 1
        self.num_run += 1
        self.seconds += time.perf_counter() - started

    def _report(self) -> None:
        """Adds a point to the curve."""
        averages = {name: torch.stack([parts[name] for parts in self._window]).mean() for name in self._window[0]}
        self.curve.append({"step": self.step, **self.task.curve_point(averages)})
        self._window.clear()
        self.on_point(self.curve[-1])
        self.report_every.restart()

    def save(self, optimization: Optimization | None = None) -> None:
        """Writes the checkpoint; None, without optimisers, is for a training that has finished."""
        if self.checkpoint is None or not self.is_writer:
            return
        state = {**self._state(optimization), "version": VERSION, "num_run": self.num_run, "branch": self._branch}
        replace_file(self.checkpoint, lambda path: torch.save(state, path))
        if self.save_every is not None:
            self.save_every.restart()

    def run_branch(self, optimization: Optimization, steps: range, at_end: Callable[[], None]) -> None:
        """Runs the remaining steps of this range, calls `at_end`, and goes back to the state before these steps.

        A loop that was restored within a branch continues the branch. Time spent in a branch is not counted.
        """
        if self._saved_optimization is not None and self.step > steps.start:
            optimization.load_state_dict(self._saved_optimization)
            self._saved_optimization = None
        if self._branch is None:
            self._branch = {"stop": steps.stop, "before": copy.deepcopy(self._state(optimization))}
        self.run(optimization, steps)
        at_end()
        before, self._branch = self._branch["before"], None
        self._load(before)
        optimization.load_state_dict(before["optimization"])

    def _state(self, optimization: Optimization | None) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "curve": list(self.curve),
            "window": self._window,
            "task": self.task.state_dict(),
            "optimization": None if optimization is None else optimization.state_dict(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def restore(self) -> None:
        """Continues from the checkpoint if its file exists.

        Raises:
            HarnessError: the checkpoint has another layout.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state.get("version") != VERSION:
            raise HarnessError(
                f"{self.checkpoint}: training checkpoint of layout version {state.get('version', 1)}, but only version "
                f"{VERSION} can be resumed; delete the file to train from the first step"
            )
        self.num_run, self._branch = state["num_run"], state["branch"]
        self._load(state)
        self._saved_optimization = state["optimization"]

    def _load(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        self._window = [{name: part.to(self.device) for name, part in parts.items()} for parts in state["window"]]
        self.task.load_state_dict(state["task"])
        torch.set_rng_state(state["torch"])
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
