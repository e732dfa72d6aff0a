"""Muon: momentum whose every direction is stepped alike, for the weight matrices of hidden layers.

Small models that start from nothing spend most of their steps on a plateau, because what the words say is a hundredth
of what all prompts have in common; an orthogonalised step follows both.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scale of the step as in
https://arxiv.org/abs/2502.16982 (section 2.2), so that a learning rate means what it means to AdamW.
Differs from torch.optim.Muon: orthogonalises in the parameter's own precision, because processors without native
bfloat16 emulate it some ninety times slower; and matrices of one shape are orthogonalised together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised.

    Args:
        parameters: matrices only.
        lr: the root mean square of a step is 0.2 of it, as AdamW's is about.
        momentum: of the running mean of gradients.
        weight_decay: decoupled, times lr.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            assert all(parameter.ndim == 2 for parameter in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
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
        """Nesterov's look ahead on the running mean of gradients."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["mean"], momentum)


def orthogonalise(matrices: Tensor) -> Tensor:
    """(K, m, n) -> the nearest matrices with singular values near 1, by Newton and Schulz's quintic iteration."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
