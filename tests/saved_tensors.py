"""Measures the activations that a forward pass keeps for the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SavedTensors:
    """Storages that autograd keeps, without those of parameters and buffers; each counted once."""

    def __init__(self, model: nn.Module) -> None:
        weights = [*model.parameters(), *model.buffers()]
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self._kept: list[Tensor] = []

    def add(self, tensor: Tensor) -> Tensor:
        """Keeps the tensor alive, so that its address is not reused."""
        self._kept.append(tensor)
        return tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all storages."""
        storages = [tensor.untyped_storage() for tensor in self._kept]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for address, size in sizes.items() if address not in self._excluded)


@contextmanager
def saved_tensors(model: nn.Module) -> Iterator[SavedTensors]:
    """Records what forward passes within the context keep for the backward pass."""
    saved = SavedTensors(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved
