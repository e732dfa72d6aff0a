"""Trains one segmenter in two stages, with the expressions of an image packed together.

A step that exceeds the memory of the GPU is repeated once with micro-batches of half the size. Several processes can
train one cell together, each on a part of the images of every step.

Source: SVP, https://arxiv.org/abs/2509.13676 (stages).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.assembly.batches import Batch, BatchMaker
from harness.data.example import Example, TextQuery
from harness.model.segmenter import Segmenter
from harness.study.training_config import TrainingConfig, decay_start
from harness.system.precision import autocast
from harness.training.loop import Interval, Optimization, Point, TrainingLoop
from harness.training.losses import Counts, Losses, losses
from harness.training.optimizers import build_optimizers
from harness.training.ranks import Ranks
from harness.training.sampler import EpochSampler, of_families, sample_queries
from harness.training.schedules import WarmupStableDecay
from harness.training.validation import Measured

logger = logging.getLogger(__name__)
SAVE_EVERY_SECONDS = 120.0
MAX_POINTS = 60
"""Points of a training curve, apart from those at the ends of stages."""
POINTS_PER_VALIDATION = 3


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of a training curve; losses are means since the point before.

    Attributes:
        validation_loss, validation_location: of the validation split, at every third point.
    """

    step: int
    loss: float
    answer: float
    bce: float
    dice: float
    location: float
    validation_loss: float | None = None
    validation_location: float | None = None


class Trainer:
    """Runs the two stages of one cell.

    Args:
        segmenter: trained in place.
        batches: turns examples into tensors on the segmenter's device.
        config: numbers of steps and learning rates.
        generator: samples images and expressions.
        on_step: called with each new point of the curve, and with `TrainingConfig.all_steps`. A point also has
            `done`, the steps so far with those of branches, and, within a branch, `is_branch`.
        training_checkpoint: a file written every two minutes and at the end, from which an interrupted training
            continues with the same result; the caller removes it. None for no training checkpoint.
        ranks: the processes that train this cell together, which all call `run` on the same examples; the first one
            writes the training checkpoint. None to train in this process alone.
        validate: measures the segmenter on the validation split; None for no validation.
        on_budget: called with the number of steps when the segmenter is trained for a budget before the last.

    Attributes:
        micro_batch_images: images whose activations are in this process's memory together; `backward` halves it at
            most once.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        batches: BatchMaker,
        config: TrainingConfig,
        generator: torch.Generator,
        on_step: Callable[[dict[str, float], int], None],
        training_checkpoint: Path | None = None,
        ranks: Ranks | None = None,
        validate: Callable[[], Measured] | None = None,
        on_budget: Callable[[int], None] | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.batches = batches
        self.config = config
        self.generator = generator
        self.ranks = ranks or Ranks()
        self.seed = generator.initial_seed()
        self.micro_batch_images = config.micro_batch_images or math.ceil(config.batch_images / self.ranks.num)
        self.has_halved_micro_batch = False
        self.groups = segmenter.parameter_groups()
        self.parameters = [*self.groups["early"], *self.groups["late"]]
        self.samplers: list[EpochSampler] = []
        self.validate = validate
        self.on_budget = on_budget
        total = config.alignment_steps + config.steps
        self.loop = TrainingLoop(
            self,
            self.parameters[0].device,
            on_point=lambda point: on_step(self._progress(point), config.all_steps),
            report_every=Interval(steps=max(1, total // MAX_POINTS)),
            checkpoint=training_checkpoint,
            save_every=Interval(seconds=SAVE_EVERY_SECONDS),
            is_writer=self.ranks.is_first,
        )

    @property
    def seconds(self) -> float:
        """Time spent in optimiser steps."""
        return self.loop.seconds

    def run(self, examples: Sequence[Example]) -> list[CurvePoint]:
        """Both stages over these examples; returns the training curve.

        Raises:
            DataError: no expression or question is of a family of the curriculum.
        """
        config = self.config
        self.segmenter.train()
        simple = of_families(examples, config.curriculum.families) if config.curriculum else examples
        self.samplers = [EpochSampler(each, config.batch_images, self.generator) for each in (simple, examples)]
        self.loop.restore()
        self.ranks.share(self.parameters)
        self._stage(("early",), 0, [config.alignment_steps])
        self._stage(("early", "late"), config.alignment_steps, [*config.budget_steps])
        # If the process dies before the trained model is written, no step is run again.
        self.loop.save()
        return [CurvePoint(**point) for point in self.loop.curve]  # type: ignore[arg-type]

    def _stage(self, learning: tuple[str, ...], start: int, ends: Sequence[int]) -> None:
        """The remaining steps of one stage, in which only the named parameter groups learn.

        Args:
            ends: numbers of steps of the stage at which its budgets end, ascending.
        """
        if self.loop.step >= start + ends[-1]:
            return
        for name, group in self.groups.items():
            for parameter in group:
                parameter.requires_grad_(name in learning)
        parameters = [parameter for name in learning for parameter in self.groups[name]]
        optimizers = build_optimizers(self.segmenter, parameters, self.config)
        schedule = self.schedule(ends[0])
        schedules = [schedule.of(optimizer) for optimizer in optimizers]
        optimization = Optimization(optimizers, schedules, [parameters], self.config.clip_norm)
        for end in ends[:-1]:
            schedule.end = end
            self._branch(optimization, start, end)
        schedule.end = ends[-1]
        self.loop.run(optimization, range(start, start + ends[-1]))

    def _progress(self, point: Point) -> Point:
        is_branch = {} if self.loop.branch_stop is None else {"is_branch": 1.0}
        return {**point, "done": self.loop.num_run, **is_branch}

    def schedule(self, end: int) -> WarmupStableDecay:
        """The learning rate of a stage whose first budget ends at this step."""
        return WarmupStableDecay(self.config.warmup_steps, end)

    def _branch(self, optimization: Optimization, start: int, end: int) -> None:
        """Decay the learning rate for a budget that ends before the stage, then undo the decay."""

        def at_end() -> None:
            if self.on_budget is not None:
                self.on_budget(end)

        before, stop = start + decay_start(end), start + end
        self.loop.run(optimization, range(start, before))
        if self.loop.branch_stop == stop or (self.loop.branch_stop is None and self.loop.step == before):
            self.loop.run_branch(optimization, range(start, stop), at_end)

    def backward(self, step: int) -> dict[str, Tensor]:
        """Adds the gradients of the objective on the next images of the sampler; returns its terms.

        The first time that a step exceeds the memory of this process's GPU, it is repeated on the same images and
        queries with micro-batches of half the size, which all later steps use too. Dropout masks of the repeated step
        are new.

        Raises:
            torch.OutOfMemoryError: the memory is exceeded again, or by a micro-batch of one image.
        """
        num_simple = self.config.curriculum.steps if self.config.curriculum else 0
        examples = self.samplers[step >= num_simple].next()
        chosen = sample_queries(examples, self.config.expressions_per_image, self.generator)
        own = self.ranks.part(len(examples))
        self.ranks.seed(self.seed, step)
        return self.ranks.add(self.parameters, self._own_gradients(step, examples[own], chosen[own]))

    def _own_gradients(
        self, step: int, examples: Sequence[Example], chosen: Sequence[Sequence[TextQuery]]
    ) -> dict[str, Tensor]:
        """Adds the gradients of this process's images; returns their share of the terms."""
        batches = self._micro_batches(examples, chosen)
        counts = self._counts(batches)
        totals = self.ranks.total(sum(counts, Counts(0, 0, 0)), self.loop.device)
        try:
            return self._add_gradients(batches, counts, totals)
        except torch.OutOfMemoryError:
            size = min(self.micro_batch_images, len(examples))
            if self.has_halved_micro_batch or size == 1:
                raise
        # Outside the handler, whose traceback keeps the activations of the failed step in memory.
        del batches
        logger.warning(
            "step %d exceeded the memory of the GPU; micro-batches have %d images instead of %d from now on",
            step + 1,
            size // 2,
            size,
        )
        self.micro_batch_images, self.has_halved_micro_batch = size // 2, True
        for parameter in self.parameters:
            parameter.grad = None
        torch.cuda.empty_cache()
        batches = self._micro_batches(examples, chosen)
        counts = self._counts(batches)
        # Other processes have summed the counts and do not repeat their steps.
        return self._add_gradients(batches, counts, totals if self.ranks.num > 1 else sum(counts, Counts(0, 0, 0)))

    def _counts(self, batches: Sequence[Batch]) -> list[Counts]:
        """What the terms of each batch are means over; empty if no batch requires a scale.

        Counting waits for the device, and the only batch of a step requires no scale.
        """
        return [Counts.of(batch) for batch in batches] if len(batches) > 1 or self.ranks.num > 1 else []

    def _add_gradients(self, batches: Sequence[Batch], counts: Sequence[Counts], totals: Counts) -> dict[str, Tensor]:
        """Adds the gradients of the objective on these batches; returns its terms."""
        sums = {field.name: torch.zeros((), device=self.loop.device) for field in fields(Losses)}
        for number, batch in enumerate(batches):
            with autocast(self.config.precision, self.loop.device):
                answer = self.segmenter(batch.features, batch.mask_inputs, batch.query)
            parts = losses(answer, batch)
            if counts:
                parts = parts.scaled(counts[number], totals)
            parts.total(self.config.location_loss).backward()
            sums = {name: term.detach() + sums[name] for name, term in parts.terms().items()}
        return sums

    def _micro_batches(self, examples: Sequence[Example], chosen: Sequence[Sequence[TextQuery]]) -> list[Batch]:
        """The images of a step in batches whose activations fit into memory together."""
        size, with_mask_inputs = self.micro_batch_images, self.segmenter.mask_decoder.learns
        parts = [slice(first, first + size) for first in range(0, len(examples), size)]
        return [self.batches.make(examples[part], chosen[part], with_mask_inputs=with_mask_inputs) for part in parts]

    def curve_point(self, averages: dict[str, Tensor]) -> Point:
        """The objective at the mean terms, and these."""
        total = Losses(**averages).total(self.config.location_loss)
        # Points of a branch are dropped with it.
        is_due = (len(self.loop.curve) + 1) % POINTS_PER_VALIDATION == 0 and self.loop.branch_stop is None
        measured = self.validate() if self.validate and is_due else {}
        return {"loss": float(total), **{name: float(mean) for name, mean in averages.items()}, **measured}

    def state_dict(self) -> dict[str, Any]:
        """Trained parameters, and the state of the sampling."""
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "samplers": [sampler.left for sampler in self.samplers],
            "generator": self.generator.get_state(),
            "micro_batch": (self.micro_batch_images, self.has_halved_micro_batch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        for sampler, left in zip(self.samplers, state["samplers"], strict=True):
            sampler.left = left
        self.generator.set_state(state["generator"])
        # Micro-batches that were halved within a branch stay so after it.
        size, has_halved = state["micro_batch"]
        self.micro_batch_images = min(self.micro_batch_images, size)
        self.has_halved_micro_batch = self.has_halved_micro_batch or has_halved
