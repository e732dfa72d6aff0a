"""Samples training images and their queries; selects the examples that a curriculum uses."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from harness.data.example import Example, TextQuery
from harness.errors import DataError, suggest


class EpochSampler:
    """Samples batches of images without replacement; a new epoch starts when too few images are left for a batch."""

    def __init__(self, examples: Sequence[Example], batch_images: int, generator: torch.Generator) -> None:
        self.examples = examples
        self.size = min(batch_images, len(examples))
        self.generator = generator
        self.left: list[int] = []

    def next(self) -> list[Example]:
        """The images of the next step."""
        if len(self.left) < self.size:
            self.left = torch.randperm(len(self.examples), generator=self.generator).tolist()
        batch, self.left = self.left[: self.size], self.left[self.size :]
        return [self.examples[i] for i in batch]


def sample_queries(examples: Sequence[Example], num_queries: int, generator: torch.Generator) -> list[list[TextQuery]]:
    """At most `num_queries` queries of each image, without replacement."""
    chosen = []
    for example in examples:
        order = torch.randperm(len(example.queries), generator=generator)[:num_queries]
        chosen.append([example.queries[i] for i in order.tolist()])
    return chosen


def of_families(examples: Sequence[Example], families: Sequence[str]) -> list[Example]:
    """Keeps the expressions and questions of these families, and the examples that have at least one.

    Raises:
        DataError: no expression or question belongs to one of the families.
    """
    present = {one.family for example in examples for one in example.queries}
    for family in families:
        if family not in present:
            raise DataError(
                f"training.curriculum.families: no expression or question of the training split is of family "
                f"{family!r}; {suggest(family, present)}"
            )
    kept = []
    for example in examples:
        expressions = tuple(one for one in example.expressions if one.family in families)
        questions = tuple(one for one in example.questions if one.family in families)
        if expressions or questions:
            kept.append(replace(example, expressions=expressions, questions=questions))
    return kept
