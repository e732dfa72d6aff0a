"""LISA's losses, and a loss on the predicted location.

Source: LISA, https://arxiv.org/abs/2308.00692 (losses and their weights).
"""

from dataclasses import dataclass, fields

import torch.nn.functional as F
from torch import Tensor

from harness.assembly.batches import Batch
from harness.model.segmenter import Answer


@dataclass(frozen=True, slots=True)
class Losses:
    """The terms of the objective: scalar means over the answer tokens of a step, or over its expressions."""

    answer: Tensor
    bce: Tensor
    dice: Tensor
    location: Tensor

    def total(self, location_weight: float) -> Tensor:
        """LISA's weights (cross-entropy 1, BCE 2, dice 0.5), plus the weighted location loss, which LISA lacks."""
        return self.answer + 2.0 * self.bce + 0.5 * self.dice + location_weight * self.location

    def scaled(self, counts: "Counts", totals: "Counts") -> "Losses":
        """The terms of a part of a step, so that their sum over all parts is the mean over the step."""
        shares = counts.shares(totals)
        return Losses(**{name: term * shares[name] for name, term in self.terms().items()})

    def terms(self) -> dict[str, Tensor]:
        """The terms by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many items the terms of the objective are means over.

    Attributes:
        answers: answer tokens.
        expressions: expressions.
        targets: expressions whose target is not empty.
    """

    answers: int
    expressions: int
    targets: int

    @classmethod
    def of(cls, batch: Batch) -> "Counts":
        """The counts of a batch."""
        targets = batch.location_targets
        return cls(len(batch.answers), len(targets), int(targets.flatten(1).any(1).sum()))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.answers + other.answers, self.expressions + other.expressions, self.targets + other.targets)

    def shares(self, totals: "Counts") -> dict[str, float]:
        """The share of each term's items that this part of a step has."""
        expressions = self.expressions / max(1, totals.expressions)
        return {
            "answer": self.answers / max(1, totals.answers),
            "bce": expressions,
            "dice": expressions,
            "location": self.targets / max(1, totals.targets),
        }


def losses(answer: Answer, batch: Batch) -> Losses:
    """Cross-entropy of the answers, BCE and dice of the masks at the decoder's resolution, and the location loss."""
    answer_loss = F.cross_entropy(answer.answer_logits.float(), batch.answers)
    zero = answer_loss.new_zeros(())
    targets, masks = batch.location_targets, batch.masks
    location = location_loss(answer.location_logits.float(), targets) if len(targets) else zero
    if not len(answer.mask_logits):
        return Losses(answer=answer_loss, bce=zero, dice=zero, location=location)
    assert masks is not None, "masks are decoded"
    logits = answer.mask_logits.float()
    target = F.interpolate(masks.targets[:, None], logits.shape[-2:], mode="area")[:, 0]
    valid_mask = F.interpolate(masks.valid[:, None], logits.shape[-2:], mode="area")[:, 0][batch.image]
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


def location_loss(location_logits: Tensor, shares: Tensor) -> Tensor:
    """Negative log of the probability that a location sampled from the softmax lies on its target.

    The mean over expressions; those with an empty target are excluded.

    Args:
        location_logits: (M, g, g).
        shares: (M, g, g), the share of each cell that the target covers.
    """
    shares = shares.flatten(1)
    has_target = shares.sum(1) > 0
    if not has_target.any():
        return location_logits.sum() * 0
    joint = location_logits.flatten(1).log_softmax(1)[has_target] + shares[has_target].clamp(min=1e-6).log()
    return -joint.logsumexp(1).mean()
