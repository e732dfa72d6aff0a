"""Muon: orthogonalised momentum, for the weight matrices of hidden layers.

Small models trained from scratch spend most of their steps on a plateau, because the gradient component that depends
on the words is a hundredth of the component that all prompts share. Orthogonalisation gives both the same step size.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scale of the update as in
https://arxiv.org/abs/2502.16982 (section 2.2), so that AdamW's learning rates can be reused.
Differs from torch.optim.Muon: orthogonalises in the parameter's own precision, because processors without native
bfloat16 emulate it about ninety times slower; matrices of the same shape are orthogonalised together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates.

    Args:
        parameters: matrices only.
        lr: learning rate; the RMS of an update is 0.2 lr, about that of AdamW.
        momentum: decay of the running mean of gradients.
        weight_decay: decoupled, multiplied by lr.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            assert all(parameter.ndim == 2 for parameter in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = orthogonalise(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Updates the running mean of gradients; returns the Nesterov momentum."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["mean"], momentum)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Sets singular values of matrices (K, m, n) to about 1, by the quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
