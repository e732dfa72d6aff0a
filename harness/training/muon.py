"""Muon: orthogonalised momentum, for the weight matrices of hidden layers.

Small models trained from scratch spend most of their steps on a plateau, because the gradient component that depends
on the words is a hundredth of the component that all prompts share. Orthogonalisation gives both the same step size.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scale of the update as in
https://arxiv.org/abs/2502.16982 (section 2.2), so that AdamW's learning rates can be reused; a different polynomial in
each iteration, as in Polar Express, https://arxiv.org/abs/2505.16932 (section 3).
Differs from torch.optim.Muon: four polynomials of their own in place of five equal ones; matrices are divided by their
Schatten 4-norm instead of the Frobenius norm; orthogonalises in the parameter's own precision, because processors
without native bfloat16 emulate it about ninety times slower; matrices of the same shape are orthogonalised together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

POLYNOMIALS = (
    (8.4052, -24.8508, 18.4246),
    (4.0772, -3.0350, 0.5722),
    (3.6058, -2.6996, 0.5340),
    (2.6177, -1.9413, 0.4486),
)
"""Coefficients a, b, c of polynomials a x + b x^3 + c x^5, applied in turn."""
MIN_SINGULAR_VALUE = 0.0025
"""Each polynomial has the least largest distance from 1 on the range that the one before maps this value to 1 to."""
LONG = 1.5
"""Ratio of sides above which it is cheaper to evaluate the polynomials on Gram matrices."""


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
                directions = orthogonalise(self._momentum(parameters, group["momentum"]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                tensors: list[Tensor] = [*parameters]
                if group["weight_decay"]:
                    torch._foreach_mul_(tensors, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(tensors, directions.unbind(), alpha=scale)

    def _momentum(self, parameters: list[nn.Parameter], momentum: float) -> Tensor:
        """Updates the running means of the gradients (K, m, n); returns the Nesterov momentum."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "mean" not in self.state[parameter]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter)
        means = [self.state[parameter]["mean"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return torch.stack(torch._foreach_lerp(gradients, means, momentum))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Sets singular values of matrices (K, m, n) to about 1, by odd polynomials of degree 5.

    Long matrices are multiplied by the matrix once: the polynomials are evaluated on the Gram matrix alone.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    gram = x @ x.mT
    # The Schatten 4-norm: at least the spectral norm, and closer to it than the Frobenius norm.
    norm = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1e-14)
    is_long = x.shape[-1] > LONG * x.shape[-2]
    x, gram = x * norm.rsqrt(), gram / norm
    x = _by_gram(x, gram) if is_long else _by_matrix(x, gram)
    return x.mT if is_tall else x


def _by_matrix(x: Tensor, gram: Tensor) -> Tensor:
    """Applies the polynomials to matrices (K, m, n) with these Gram matrices."""
    for number, coefficients in enumerate(POLYNOMIALS):
        if number:
            gram = x @ x.mT
        x = _factor(gram, coefficients) @ x
    return x


def _by_gram(x: Tensor, gram: Tensor) -> Tensor:
    """The same with one product of the size of x: factors commute, and so do they with the Gram matrix."""
    product = _factor(gram, POLYNOMIALS[0])
    factor = product
    for coefficients in POLYNOMIALS[1:]:
        gram = factor @ (factor @ gram)
        factor = _factor(gram, coefficients)
        product = factor @ product
    return product @ x


def _factor(gram: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """a I + b G + c G G, by which a polynomial multiplies the matrix."""
    a, b, c = coefficients
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor
