"""Trains one segmenter: LISA's losses, two stages, expressions of an image packed together.

Source: LISA, https://arxiv.org/abs/2308.00692 (losses and their weights);
    SVP, https://arxiv.org/abs/2509.13676 (stages).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.segmenter import Answer, Segmenter
from harness.batches import Batch, BatchMaker
from harness.data.example import Example
from harness.errors import DataError, suggest
from harness.muon import Muon
from harness.recipe import TrainingConfig


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of the objective, each a scalar mean over the expressions of a step."""

    answer: Tensor
    bce: Tensor
    dice: Tensor

    @property
    def total(self) -> Tensor:
        """LISA's weights: cross-entropy 1, BCE 2, dice 0.5."""
        return self.answer + 2.0 * self.bce + 0.5 * self.dice


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One logged point of a training curve; losses are means since the point before."""

    step: int
    loss: float
    answer: float
    bce: float
    dice: float


def losses(answer: Answer, batch: Batch) -> Losses:
    """Cross-entropy of the answer word, BCE and dice of the mask at the decoder's resolution."""
    logits = answer.mask_logits.float()
    target = F.interpolate(batch.targets[:, None], logits.shape[-2:], mode="area")[:, 0]
    inside = F.interpolate(batch.inside[:, None], logits.shape[-2:], mode="area")[:, 0][batch.image]
    bce = F.binary_cross_entropy_with_logits(logits, target, weight=inside, reduction="none").sum((1, 2))
    return Losses(
        answer=F.cross_entropy(answer.answer_logits.float(), batch.answers),
        bce=(bce / inside.sum((1, 2))).mean(),
        dice=dice_loss(logits.sigmoid() * inside, target).mean(),
    )


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """1 - dice of soft masks (M, h, w) -> (M,); LISA's scale of 1000 and epsilon of 1e-6."""
    scale, epsilon = 1000.0, 1e-6
    overlap = 2 * (probabilities / scale * targets).sum((1, 2))
    return 1 - (overlap + epsilon) / ((probabilities / scale).sum((1, 2)) + (targets / scale).sum((1, 2)) + epsilon)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a model runs; `auto` takes bfloat16 only where the hardware multiplies it natively."""
    if resolve_precision(precision, device) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` -> what this device does well; AVX2 processors emulate bfloat16 some ninety times slower than float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


class Trainer:
    """Runs the two stages of one cell.

    Args:
        segmenter: trained in place.
        batches: turns examples into tensors on the segmenter's device.
        config: lengths and rates.
        generator: draws the order of images and expressions.
        on_step: told (done, total, loss) after each step.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        batches: BatchMaker,
        config: TrainingConfig,
        generator: torch.Generator,
        on_step: Callable[[int, int, float], None],
    ) -> None:
        self.segmenter = segmenter
        self.batches = batches
        self.config = config
        self.generator = generator
        self.on_step = on_step
        self.curve: list[CurvePoint] = []

    def run(self, examples: Sequence[Example]) -> list[CurvePoint]:
        """Both stages over these examples; returns the training curve.

        Raises:
            DataError: no expression is of a family that the curriculum begins with.
        """
        groups = self.segmenter.parameter_groups()
        self.segmenter.train()
        order = self._order(examples)
        if self.config.alignment_steps:
            for parameter in groups["late"]:
                parameter.requires_grad_(False)
            self._stage(groups["early"], order, self.config.alignment_steps)
            for parameter in groups["late"]:
                parameter.requires_grad_(True)
        self._stage(groups["early"] + groups["late"], order, self.config.steps)
        return self.curve

    def _stage(self, parameters: list[nn.Parameter], order: Iterator[list[Example]], steps: int) -> None:
        config = self.config
        optimizers = build_optimizers(self.segmenter, parameters, config)
        schedules = [warmup_cosine(optimizer, config.warmup_steps, steps) for optimizer in optimizers]
        device = parameters[0].device
        total = config.alignment_steps + config.steps
        start = self.curve[-1].step if self.curve else 0
        every = max(1, total // 50)
        window: list[Losses] = []
        for step in range(start + 1, start + steps + 1):
            batch = self.batches.training(next(order), config.expressions_per_image, self.generator)
            with autocast(config.precision, device):
                answer = self.segmenter(batch.features, batch.view, batch.query)
            parts = losses(answer, batch)
            parts.total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
            window.append(Losses(parts.answer.detach(), parts.bce.detach(), parts.dice.detach()))
            if step % every == 0 or step == start + steps:
                self.curve.append(_mean(step, window))
                window.clear()
                self.on_step(step, total, self.curve[-1].loss)

    def _order(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """The batches of a whole training, those of the curriculum first."""
        curriculum = self.config.curriculum
        if curriculum is not None:
            simple = of_families(examples, curriculum.families)
            yield from islice(self._endless(simple), curriculum.steps)
        yield from self._endless(examples)

    def _endless(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Batches of images, each image once before any comes again."""
        size = min(self.config.batch_images, len(examples))
        while True:
            order = torch.randperm(len(examples), generator=self.generator).tolist()
            for start in range(0, len(order) - size + 1, size):
                yield [examples[i] for i in order[start : start + size]]


def of_families(examples: Sequence[Example], families: Sequence[str]) -> list[Example]:
    """The examples with only their expressions of these families; those that have none are left out.

    Raises:
        DataError: no example has any expression of one of the families.
    """
    present = {expression.family for example in examples for expression in example.expressions}
    for family in families:
        if family not in present:
            raise DataError(
                f"training.curriculum.families: no training expression is of the family {family!r}; "
                f"{suggest(family, present)}"
            )
    kept = []
    for example in examples:
        expressions = tuple(one for one in example.expressions if one.family in families)
        if expressions:
            kept.append(replace(example, expressions=expressions))
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


def _mean(step: int, window: list[Losses]) -> CurvePoint:
    def mean(values: list[Tensor]) -> float:
        return float(torch.stack(values).mean())

    return CurvePoint(
        step,
        mean([x.total for x in window]),
        mean([x.answer for x in window]),
        mean([x.bce for x in window]),
        mean([x.dice for x in window]),
    )


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear rise over `warmup` steps, then a cosine to zero at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
