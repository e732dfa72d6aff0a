"""Builds modules quickly, for their shapes and settings only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLING = {"kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_"}
_FILLING |= {"uniform_", "normal_"}


class _Unfilled(TorchFunctionMode):
    """Leaves the memory of tensors as it is where an initialisation would fill it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _FILLING:
            return [*args, *(kwargs or {}).values()][0]
        return func(*args, **(kwargs or {}))


def _unfilled(tensor: Tensor, *_: object, **__: object) -> Tensor:
    return tensor


@contextmanager
def _without_truncated_normal() -> Iterator[None]:
    """`nn.init.trunc_normal_` leaves its tensor as it is.

    It draws again until every value lies within its limits. Without a drawing, the values of uninitialized memory stay,
    so the loop may never end; and a mode of torch functions does not see this function.
    """
    original = nn.init.trunc_normal_
    nn.init.trunc_normal_ = _unfilled
    try:
        yield
    finally:
        nn.init.trunc_normal_ = original


@contextmanager
def uninitialized() -> Iterator[None]:
    """Modules that are built inside the context have weights without meaning, on the CPU.

    The pages of large weights are never touched, so they take no memory. On the meta device, simple operations import
    torch's compiler, which takes over a second. torch's random state stays the same.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _Unfilled(), _without_truncated_normal():
        yield
