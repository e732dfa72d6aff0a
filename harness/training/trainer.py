"""Trains one segmenter: LISA's losses, two stages, expressions of an image packed together.

Source: LISA, https://arxiv.org/abs/2308.00692 (losses and their weights);
    SVP, https://arxiv.org/abs/2509.13676 (stages).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.assembly.batches import Batch, BatchMaker
from harness.data.example import Example
from harness.errors import DataError, suggest
from harness.model.segmenter import Answer, Segmenter
from harness.study.training_config import TrainingConfig
from harness.system.files import replace_file
from harness.system.precision import autocast
from harness.training.muon import Muon

SAVE_EVERY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of the objective, each a scalar mean: over the words of a step's answers, or over its expressions."""

    answer: Tensor
    bce: Tensor
    dice: Tensor
    location: Tensor

    def total(self, location_weight: float) -> Tensor:
        """LISA's weights (cross-entropy 1, BCE 2, dice 0.5), plus a weighted location loss that LISA does not have."""
        return self.answer + 2.0 * self.bce + 0.5 * self.dice + location_weight * self.location


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One logged point of a training curve; losses are means since the point before."""

    step: int
    loss: float
    answer: float
    bce: float
    dice: float
    location: float


def losses(answer: Answer, batch: Batch) -> Losses:
    """Cross-entropy of the answers, BCE and dice of the masks at the decoder's resolution, and the location loss."""
    answer_loss = F.cross_entropy(answer.answer_logits.float(), batch.answers)
    nothing = answer_loss.new_zeros(())
    location = location_loss(answer.location_logits.float(), batch.targets) if len(batch.targets) else nothing
    if not len(answer.mask_logits):
        return Losses(answer=answer_loss, bce=nothing, dice=nothing, location=location)
    logits = answer.mask_logits.float()
    target = F.interpolate(batch.targets[:, None], logits.shape[-2:], mode="area")[:, 0]
    valid_mask = F.interpolate(batch.valid_mask[:, None], logits.shape[-2:], mode="area")[:, 0][batch.image]
    bce = F.binary_cross_entropy_with_logits(logits, target, weight=valid_mask, reduction="none").sum((1, 2))
    return Losses(
        answer=answer_loss,
        bce=(bce / valid_mask.sum((1, 2))).mean(),
        dice=dice_loss(logits.sigmoid() * valid_mask, target).mean(),
        location=location,
    )


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """1 - dice of soft masks (M, h, w) -> (M,); LISA's scale of 1000 and epsilon of 1e-6."""
    scale, epsilon = 1000.0, 1e-6
    overlap = 2 * (probabilities / scale * targets).sum((1, 2))
    return 1 - (overlap + epsilon) / ((probabilities / scale).sum((1, 2)) + (targets / scale).sum((1, 2)) + epsilon)


def location_loss(location_logits: Tensor, targets: Tensor) -> Tensor:
    """How unlikely a place drawn from the softmax of `places` (M, g, g) is on its target (M, R, R): mean of -log.

    What has no target is left out.
    """
    share = F.interpolate(targets[:, None], location_logits.shape[-2:], mode="area").flatten(1)
    is_meant = share.sum(1) > 0
    if not is_meant.any():
        return location_logits.sum() * 0
    likely = location_logits.flatten(1).log_softmax(1)[is_meant] + share[is_meant].clamp(min=1e-6).log()
    return -likely.logsumexp(1).mean()


class EpochSampler:
    """Which images each step sees: each image once before any comes again."""

    def __init__(self, examples: Sequence[Example], batch_images: int, generator: torch.Generator) -> None:
        self.examples = examples
        self.size = min(batch_images, len(examples))
        self.generator = generator
        self.left: list[int] = []

    def next(self) -> list[Example]:
        """The images of the next step."""
        if len(self.left) < self.size:
            self.left = torch.randperm(len(self.examples), generator=self.generator).tolist()
        drawn, self.left = self.left[: self.size], self.left[self.size :]
        return [self.examples[i] for i in drawn]


class Trainer:
    """Runs the two stages of one cell.

    Args:
        segmenter: trained in place.
        batches: turns examples into tensors on the segmenter's device.
        config: lengths and rates.
        generator: draws the order of images and expressions.
        on_step: called with each new point of the curve and the number of steps of the whole training.
        training_checkpoint: a file written every two minutes and at the end, from which an interrupted training
            continues with the same result; the caller removes it. None for none.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        batches: BatchMaker,
        config: TrainingConfig,
        generator: torch.Generator,
        on_step: Callable[[dict[str, float], int], None],
        training_checkpoint: Path | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.batches = batches
        self.config = config
        self.generator = generator
        self.on_step = on_step
        self.training_checkpoint = training_checkpoint
        self.curve: list[CurvePoint] = []
        self.seconds = 0.0
        self._step = 0
        self._window: list[Losses] = []
        self._saved_at = time.monotonic()

    def run(self, examples: Sequence[Example]) -> list[CurvePoint]:
        """Both stages over these examples; returns the training curve.

        Raises:
            DataError: no expression is of a family that the curriculum begins with.
        """
        config, groups = self.config, self.segmenter.parameter_groups()
        self.segmenter.train()
        simple = of_families(examples, config.curriculum.families) if config.curriculum else examples
        orders = [EpochSampler(shown, config.batch_images, self.generator) for shown in (simple, examples)]
        saved = self._opened(orders, [*groups["early"], *groups["late"]])
        self._stage(groups, ("early",), orders, range(config.alignment_steps), saved)
        whole = range(config.alignment_steps, config.alignment_steps + config.steps)
        self._stage(groups, ("early", "late"), orders, whole, saved)
        if self.training_checkpoint is not None:
            # A process that dies before it has written the trained model trains no step again.
            self._keep(orders, [*groups["early"], *groups["late"]], [])
        return self.curve

    def _stage(
        self,
        groups: dict[str, list[nn.Parameter]],
        learning: tuple[str, ...],
        orders: list[EpochSampler],
        steps: range,
        saved: dict[str, Any] | None,
    ) -> None:
        """Those of these steps that are left, in which only the groups named learn."""
        if self._step >= steps.stop:
            return
        for name, group in groups.items():
            for parameter in group:
                parameter.requires_grad_(name in learning)
        parameters = [parameter for name in learning for parameter in groups[name]]
        optimizers = build_optimizers(self.segmenter, parameters, self.config)
        schedules = [warmup_cosine(optimizer, self.config.warmup_steps, len(steps)) for optimizer in optimizers]
        if saved is not None and self._step > steps.start:
            parts: list[Any] = [*optimizers, *schedules]
            for part, state in zip(parts, saved["optimizers"], strict=True):
                part.load_state_dict(state)
        total = self.config.alignment_steps + self.config.steps
        every = max(1, total // 50)
        num_simple = self.config.curriculum.steps if self.config.curriculum else 0
        while self._step < steps.stop:
            started = time.perf_counter()
            shown = orders[self._step >= num_simple].next()
            self._window.append(self._update(shown, parameters, optimizers, schedules))
            self._step += 1
            self.seconds += time.perf_counter() - started
            if self._step % every == 0 or self._step == steps.stop:
                self.curve.append(_mean(self._step, self._window, self.config.location_loss))
                self._window.clear()
                self.on_step(asdict(self.curve[-1]), total)
            if self.training_checkpoint is not None and time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
                self._keep(orders, [*groups["early"], *groups["late"]], [*optimizers, *schedules])

    def _update(
        self,
        examples: list[Example],
        parameters: list[nn.Parameter],
        optimizers: list[torch.optim.Optimizer],
        schedules: list[torch.optim.lr_scheduler.LRScheduler],
    ) -> Losses:
        """One step over these images."""
        count, with_mask_inputs = self.config.expressions_per_image, self.segmenter.mask_decoder.learns
        batch = self.batches.training(examples, count, self.generator, with_mask_inputs=with_mask_inputs)
        with autocast(self.config.precision, parameters[0].device):
            answer = self.segmenter(batch.features, batch.mask_inputs, batch.query)
        parts = losses(answer, batch)
        parts.total(self.config.location_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        return Losses(*(getattr(parts, field.name).detach() for field in fields(parts)))

    def _keep(self, orders: list[EpochSampler], parameters: list[nn.Parameter], optimizers: list[Any]) -> None:
        """Writes the training checkpoint."""
        state = {
            "step": self._step,
            "seconds": self.seconds,
            "parameters": [parameter.detach() for parameter in parameters],
            "optimizers": [part.state_dict() for part in optimizers],
            "curve": [asdict(point) for point in self.curve],
            "window": [asdict(parts) for parts in self._window],
            "orders": [order.left for order in orders],
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }
        assert self.training_checkpoint is not None
        replace_file(self.training_checkpoint, lambda path: torch.save(state, path))
        self._saved_at = time.monotonic()

    def _opened(self, orders: list[EpochSampler], parameters: list[nn.Parameter]) -> dict[str, Any] | None:
        """What the training checkpoint holds, everything but the optimisers put back; None where there is none."""
        if self.training_checkpoint is None or not self.training_checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.training_checkpoint, map_location="cpu", weights_only=True)
        self._step, self.seconds = state["step"], state["seconds"]
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        device = parameters[0].device
        self._window = [Losses(**{name: part.to(device) for name, part in parts.items()}) for parts in state["window"]]
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        for order, left in zip(orders, state["orders"], strict=True):
            order.left = left
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        torch.cuda.set_rng_state_all(state["cuda"])
        return state


def of_families(examples: Sequence[Example], families: Sequence[str]) -> list[Example]:
    """The examples with only what they ask of these families; those that ask nothing of them are left out.

    Raises:
        DataError: nothing that is asked is of one of the families.
    """
    present = {one.family for example in examples for one in example.queries}
    for family in families:
        if family not in present:
            raise DataError(
                f"training.curriculum.families: nothing asked in training is of the family {family!r}; "
                f"{suggest(family, present)}"
            )
    kept = []
    for example in examples:
        expressions = tuple(one for one in example.expressions if one.family in families)
        questions = tuple(one for one in example.questions if one.family in families)
        if expressions or questions:
            kept.append(replace(example, expressions=expressions, questions=questions))
    return kept


def build_optimizers(
    segmenter: Segmenter, parameters: Sequence[nn.Parameter], config: TrainingConfig
) -> list[torch.optim.Optimizer]:
    """One optimiser for all of these parameters, or Muon for the hidden matrices among them and AdamW for the rest."""
    hidden = hidden_matrices(segmenter) if config.optimizer == "muon" else set()
    matrices = [p for p in parameters if id(p) in hidden]
    others = [p for p in parameters if id(p) not in hidden]
    decayed = [p for p in others if p.ndim > 1]
    plain = [p for p in others if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices, config.learning_rate, weight_decay=config.weight_decay)]


def hidden_matrices(segmenter: Segmenter) -> set[int]:
    """Identities of the weights of linear layers, without the LLM's output layer."""
    linear = {id(module.weight) for module in segmenter.modules() if isinstance(module, nn.Linear)}
    return linear - {id(segmenter.llm.model.get_output_embeddings().weight)}


def _mean(step: int, window: list[Losses], location_weight: float) -> CurvePoint:
    parts = {
        each.name: torch.stack([getattr(losses, each.name) for losses in window]).mean() for each in fields(Losses)
    }
    total = Losses(**parts).total(location_weight)
    return CurvePoint(step, float(total), **{name: float(part) for name, part in parts.items()})


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear rise over `warmup` steps, then a cosine to zero at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
