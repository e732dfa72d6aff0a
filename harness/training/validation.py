"""Measures a segmenter on the validation split while it is trained, without decoding masks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.assembly.batches import BatchMaker
from harness.data.example import Example
from harness.model.segmenter import Segmenter
from harness.study.training_config import TrainingConfig
from harness.system.precision import autocast
from harness.training.losses import Counts, losses

Measured = dict[str, float]


class Validation:
    """Loss and location accuracy over all expressions and questions of some images.

    Args:
        examples: images of the validation split.
    """

    def __init__(
        self, segmenter: Segmenter, batches: BatchMaker, examples: Sequence[Example], config: TrainingConfig
    ) -> None:
        self.segmenter = segmenter
        self.batches = batches
        self.examples = examples
        self.config = config

    @torch.no_grad()
    def __call__(self) -> Measured:
        """`validation_loss`: answer and weighted location loss; `validation_location`: refer to `location_accuracy`.

        A split without a target has no `validation_location`.
        """
        was_training = self.segmenter.training
        self.segmenter.eval()
        size, examples = self.config.batch_images, self.examples
        parts = [examples[first : first + size] for first in range(0, len(examples), size)]
        batches = [
            self.batches.make(part, [example.queries for example in part], with_mask_inputs=False) for part in parts
        ]
        counts = [Counts.of(batch) for batch in batches]
        totals, loss, hits = sum(counts[1:], counts[0]), 0.0, list[Tensor]()
        for batch, count in zip(batches, counts, strict=True):
            with autocast(self.config.precision, self.batches.device):
                answer = self.segmenter(batch.features, None, batch.query)
            terms = losses(answer, batch).scaled(count, totals)
            loss += float(terms.answer + self.config.location_loss * terms.location)
            hits.append(hits_target(answer.location_logits.float(), batch.location_targets))
        self.segmenter.train(was_training)
        found = torch.cat(hits)
        location = {"validation_location": float(found.float().mean())} if len(found) else {}
        return {"validation_loss": loss, **location}


def hits_target(location_logits: Tensor, shares: Tensor) -> Tensor:
    """Whether the most likely cell of the grid lies on the target, for each target that is not empty.

    A cell lies on the target if the target covers at least half of it. If it covers half of no cell, the one that it
    covers most counts.

    Args:
        location_logits: (M, g, g).
        shares: (M, g, g), the share of each cell that the target covers.

    Returns:
        (N,) bool, N <= M.
    """
    shares, largest = shares.flatten(1), shares.flatten(1).amax(1)
    found = shares.gather(1, location_logits.flatten(1).argmax(1, keepdim=True))[:, 0]
    return (found >= largest.clamp(max=0.5))[largest > 0]
