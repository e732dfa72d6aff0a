"""The processes that train one cell together, one per device, and what they exchange in each step.

Every process draws the same images and expressions, and adds the gradients of its own part of them. Gradients are
summed once per step, after the last micro-batch, and never averaged: each term of the objective is scaled by the counts
of the whole step. A process can therefore divide its part into any number of micro-batches.

Differs from torch's DistributedDataParallel: gradients are not sent during the backward pass, a process may have no
images, and a parameter without a gradient in all processes keeps none, so that optimisers skip it as in one process.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather, reduce
from torch import Tensor, nn

from harness.training.losses import Counts

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others; longer than it takes to load a model or to write a training checkpoint."""
BUCKET_ELEMENTS = 25_000_000
"""Gradients that are sent at once, 100 MB in float32."""


class Ranks:
    """This process among those that train a cell, numbered from 0.

    Args:
        state: of `accelerate`, connected to the other processes; None if this process trains alone.
    """

    def __init__(self, state: PartialState | None = None) -> None:
        self.num: int = 1 if state is None else state.num_processes
        self.index: int = 0 if state is None else state.process_index

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.index == 0

    def part(self, num_items: int) -> slice:
        """The items of a step that this process computes; empty if there are fewer items than processes."""
        return slice(num_items * self.index // self.num, num_items * (self.index + 1) // self.num)

    def seed(self, seed: int, step: int) -> None:
        """Seed torch's global generator, so that dropout differs between processes and repeats in a resumed training.

        A process that trains alone keeps the state of its generator.
        """
        if self.num > 1:
            torch.manual_seed(int(np.random.SeedSequence((seed, step, self.index)).generate_state(1)[0]))

    def share(self, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the values of the first process to all others."""
        if self.num > 1:
            for parameter in parameters:
                broadcast(parameter.detach())

    def total(self, counts: Counts, device: torch.device) -> Counts:
        """The sum over all processes."""
        if self.num == 1:
            return counts
        items = torch.tensor([counts.answers, counts.expressions, counts.targets], device=device)
        return Counts(*reduce(items, "sum").tolist())

    def add(self, parameters: Sequence[nn.Parameter], terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace gradients by their sums over all processes; return the sums of these scalars."""
        if self.num == 1:
            return terms
        scalars = torch.stack([*terms.values()])
        has_gradient = scalars.new_tensor([parameter.grad is not None for parameter in parameters])
        sums = reduce(torch.cat([scalars, has_gradient]), "sum")
        counts = sums[len(terms) :].tolist()
        for bucket in _buckets([one for one, count in zip(parameters, counts, strict=True) if count]):
            gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in bucket]
            added = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
            for one, gradient in zip(bucket, added.split([one.numel() for one in bucket]), strict=True):
                one.grad = gradient.view_as(one).to(one.dtype)
        return dict(zip(terms, sums[: len(terms)], strict=True))

    def gather(self, value: float, device: torch.device) -> list[float]:
        """The value of each process."""
        if self.num == 1:
            return [value]
        return gather(torch.tensor([value], dtype=torch.float64, device=device)).tolist()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in order, in groups of at most `BUCKET_ELEMENTS` elements or of one parameter."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(one.numel() for one in bucket) + parameter.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


@contextmanager
def connected(index: int, num: int, store: Path) -> Iterator[Ranks]:
    """Connects this process to the others of its cell: by NCCL with one GPU each, or by gloo on the CPU.

    Args:
        index: of this process, from 0; also that of its GPU.
        num: number of processes.
        store: a file that all of them see and that does not exist yet, through which they find each other.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(index)
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
    torch.distributed.init_process_group(
        "nccl" if has_gpu else "gloo",
        store=torch.distributed.FileStore(str(store), num),
        rank=index,
        world_size=num,
        timeout=TIMEOUT,
    )
    yield Ranks(PartialState(cpu=not has_gpu))
    # Only without an exception: after one, the others may be waiting for this process, and NCCL for them.
    torch.distributed.destroy_process_group()
