"""Steps that references share: plain formulas on single vectors, with the weights of a module of ours."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.projector_cases import DIMS

HEIGHT, WIDTH = DIMS.grid


def linear_layers(layers: nn.Module, value: Tensor) -> Tensor:
    """Linear, GELU, linear, ... of a vector, over whatever linear layers the module holds."""
    linear = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    for index, layer in enumerate(linear):
        value = layer.weight @ (F.gelu(value) if index else value) + layer.bias
    return value


def layer_norm(norm: nn.Module, value: Tensor) -> Tensor:
    """Layer norm of a vector."""
    assert isinstance(norm, nn.LayerNorm)
    variance = ((value - value.mean()) ** 2).mean()
    return (value - value.mean()) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias


def attend(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """One query (E,) over keys and values (n, E), by heads of equal width, scores over the root of that width."""
    width = len(query) // heads
    read = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        read.append((keys[:, part] @ query[part] / width**0.5).softmax(0) @ values[:, part])
    return torch.cat(read)


def linear_flops(module: nn.Module, rows: int) -> int:
    """Of the linear layers that the module holds, each over `rows` vectors."""
    return sum(2 * rows * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
