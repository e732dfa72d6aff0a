"""Formulas on single vectors that references share, with the weights of a projector's modules."""

from math import cos, floor, sin

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.projector_cases import DIMS

HEIGHT, WIDTH = DIMS.grid


def linear_layers(layers: nn.Module, value: Tensor) -> Tensor:
    """All linear layers of a module applied to a vector, with GELU between them."""
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
    attended = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        attended.append((keys[:, part] @ query[part] / width**0.5).softmax(0) @ values[:, part])
    return torch.cat(attended)


def linear_flops(module: nn.Module, rows: int) -> int:
    """FLOPs of all linear layers of a module on `rows` vectors."""
    return sum(2 * rows * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def resized_sincos(n: int, side: int, width: int) -> Tensor:
    """The position embedding of patch n, interpolated from a grid of side x side."""
    terms = [
        down * across * sincos(row, column, width)
        for row, down in _cubic(n // WIDTH, side, HEIGHT)
        for column, across in _cubic(n % WIDTH, side, WIDTH)
    ]
    return torch.stack(terms).sum(0)


def sincos(row: int, column: int, width: int) -> Tensor:
    """Sine-cosine embedding of one location of a grid."""
    waves = [[at / 10000 ** (4 * k / width) for k in range(width // 4)] for at in (column, row)]
    return torch.tensor([wave(angle) for angles in waves for wave in (sin, cos) for angle in angles]).double()


def _cubic(at: int, length: int, new_length: int) -> list[tuple[int, float]]:
    """Cubic interpolation (Keys, a = -0.75): the four source positions of a resized one, and their weights."""
    a, where = -0.75, (at + 0.5) * length / new_length - 0.5
    taps = []
    for position in range(floor(where) - 1, floor(where) + 3):
        t = abs(where - position)
        near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
        taps.append((min(max(position, 0), length - 1), near if t <= 1 else far))
    return taps
