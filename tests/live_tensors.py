"""Measures the peak memory of all tensors on any device, as `torch.cuda.max_memory_allocated` does on CUDA."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts storages from the operation that creates them until they are freed, within the context.

    Memory that an operation frees before it returns is not counted.

    Args:
        existing: tensors that are in memory before.

    Attributes:
        peak: largest number of bytes at once.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._alive: set[int] = set()
        for tensor in existing:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.current -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts its outputs."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return found
