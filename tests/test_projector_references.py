"""Each projector equals a reference of plain loops that shares none of its code; the formulas are those of the papers.

In float64, where the two orders of summation agree to 1e-5 with a wide margin.
"""

from collections.abc import Callable
from math import ceil, floor, pi
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import projectors
from projectors import Projector, VisualFeatures
from tests.projector_cases import CASES, DIMS, IDS, build, features

Reference = Callable[[Projector, VisualFeatures, int], list[Tensor]]
HEIGHT, WIDTH = DIMS.grid


def _two_layers(layers: nn.Module, value: Tensor) -> Tensor:
    """Linear, GELU, linear, ... over whatever linear layers the module holds."""
    linear = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    for index, layer in enumerate(linear):
        value = layer.weight @ (F.gelu(value) if index else value) + layer.bias
    return value


def _layer_norm(norm: nn.Module, value: Tensor) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    variance = ((value - value.mean()) ** 2).mean()
    return (value - value.mean()) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias


def _mlp(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    return [
        _two_layers(projector.project, batch.patches[image, n])
        for n in range(HEIGHT * WIDTH)
        if batch.patch_mask[image, n]
    ]


def _pooling(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    side = round(projector.config.tokens**0.5)
    tokens = []
    for i in range(side):
        for j in range(side):
            rows = range(floor(i * HEIGHT / side), ceil((i + 1) * HEIGHT / side))
            columns = range(floor(j * WIDTH / side), ceil((j + 1) * WIDTH / side))
            cell = [row * WIDTH + column for row in rows for column in columns]
            real = [batch.patches[image, n] for n in cell if batch.patch_mask[image, n]]
            if real:
                tokens.append(_two_layers(projector.project, sum(real) / len(real)))
    return tokens


def _pixels(labels: Tensor, region: int) -> list[tuple[int, int]]:
    return [(y, x) for y, x in (labels == region).nonzero().tolist()]


def _shares(labels: Tensor, region: int, height: int, width: int) -> list[Tensor]:
    """By counting: the share of each cell's pixels that lie in the region."""
    side = len(labels)
    inside, total = [[0] * width for _ in range(height)], [[0] * width for _ in range(height)]
    for y, row in enumerate(labels.tolist()):
        for x, label in enumerate(row):
            total[y * height // side][x * width // side] += 1
            inside[y * height // side][x * width // side] += label == region
    return list((torch.tensor(inside).double() / torch.tensor(total)).flatten())


def _no_position(encoder: Any, labels: Tensor, region: int, decoder_pe: Tensor) -> Tensor:  # noqa: ARG001
    return torch.zeros(DIMS.vision).double()


def _bbox_mlp(encoder: Any, labels: Tensor, region: int, decoder_pe: Tensor) -> Tensor:  # noqa: ARG001
    pixels = _pixels(labels, region)
    top, bottom = min(y for y, _ in pixels), max(y for y, _ in pixels) + 1
    left, right = min(x for _, x in pixels), max(x for _, x in pixels) + 1
    box = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]).double() / len(labels)
    return _layer_norm(encoder.encode[1], _two_layers(encoder.encode, box))


def _decoder_pe(encoder: Any, labels: Tensor, region: int, decoder_pe: Tensor) -> Tensor:
    _, height, width = decoder_pe.shape
    shares = _shares(labels, region, height, width)
    cells = [decoder_pe[:, n // width, n % width] for n in range(height * width)]
    place = sum(share * cell for share, cell in zip(shares, cells, strict=True)) / sum(shares)
    share = sum(shares) / len(shares)
    size = 1 + share.clamp(min=1 / labels.numel()).log() / torch.tensor(labels.numel()).double().log()
    vector = torch.cat([place, share[None], size[None]])
    return _layer_norm(encoder.encode[1], _two_layers(encoder.encode, vector))


def _cell_position(encoder: Any, y: int, x: int, decoder_pe: Tensor) -> Tensor:
    config = encoder.config
    if config.keys == "decoder_pe":
        _, height, width = decoder_pe.shape
        rows = slice(floor(y * height / config.resolution), ceil((y + 1) * height / config.resolution))
        columns = slice(floor(x * width / config.resolution), ceil((x + 1) * width / config.resolution))
        return _two_layers(encoder.cells, decoder_pe[:, rows, columns].mean((1, 2)))
    quarter = config.width // 4
    angles = [
        [(at + 0.5) / config.resolution * pi * config.resolution ** (k / (quarter - 1)) for k in range(quarter)]
        for at in (y, x)
    ]
    waves = [part for row in angles for part in (torch.tensor(row).double().sin(), torch.tensor(row).double().cos())]
    return torch.cat(waves)


def _sspe(encoder: Any, labels: Tensor, region: int, decoder_pe: Tensor) -> Tensor:
    """The plain form: each cell's key and value are projections of position + mask * embedding."""
    config = encoder.config
    head_dim = config.width // config.heads
    shares = _shares(labels, region, config.resolution, config.resolution)
    at = [(y, x) for y in range(config.resolution) for x in range(config.resolution)]
    cells = [
        _cell_position(encoder, y, x, decoder_pe) + m * encoder.inside for (y, x), m in zip(at, shares, strict=True)
    ]
    states = list(encoder.queries)
    for block in encoder.blocks:
        keys = torch.stack([block.key.weight @ cell for cell in cells])
        values = torch.stack([block.value.weight @ cell for cell in cells])
        for index, state in enumerate(states):
            query = _two_layers(block.query, _layer_norm(block.attention_norm, state))
            read = []
            for head in range(config.heads):
                part = slice(head * head_dim, (head + 1) * head_dim)
                weights = (keys[:, part] @ query[part] / head_dim**0.5).softmax(0)
                read.append(weights @ values[:, part])
            attended = state + _two_layers(block.output, torch.cat(read))
            states[index] = attended + _two_layers(block.mlp[1:], _layer_norm(block.mlp[0], attended))
    joined = torch.cat([_layer_norm(encoder.norm, state) for state in states])
    return _layer_norm(encoder.merge[1], _two_layers(encoder.merge, joined))


POSITIONS = {"none": _no_position, "bbox_mlp": _bbox_mlp, "decoder_pe": _decoder_pe, "sspe": _sspe}


def _ssa(
    aggregation: Any, coarse: list[Tensor], positions: list[Tensor], patches: list[Tensor], keyed: list[Tensor]
) -> list[Tensor]:
    """One query at a time over the real patches."""
    head_dim = aggregation.query.out_features // aggregation.heads
    keys = torch.stack([aggregation.key.weight @ patch for patch in keyed])
    values = torch.stack([_two_layers(aggregation.value, patch) for patch in patches])
    refined = []
    for superpixel, position in zip(coarse, positions, strict=True):
        query = _two_layers(aggregation.query, _layer_norm(aggregation.norm, superpixel) + position)
        read = []
        for head in range(aggregation.heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            read.append((keys[:, part] @ query[part] / head_dim**0.5).softmax(0) @ values[:, part])
        refined.append(superpixel + _two_layers(aggregation.output, torch.cat(read)))
    return refined


def _svp(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    assert batch.superpixels is not None
    assert batch.decoder_pe is not None
    labels = batch.superpixels[image]
    encode = POSITIONS[projector.config.position.name]
    regions = range(int(labels.max()) + 1)
    patches = [_layer_norm(projector.norm, patch) for patch in batch.patches[image]]
    shares = [_shares(labels, region, HEIGHT, WIDTH) for region in regions]
    coarse = [sum(share * p for share, p in zip(row, patches, strict=True)) / sum(row) for row in shares]
    positions = [encode(projector.position, labels, region, batch.decoder_pe) for region in regions]
    refined = coarse
    if projector.config.aggregation.name == "ssa":
        real = [n for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
        if projector.config.aggregation.key_position == "patch":
            side = len(labels)
            ids = [[y * HEIGHT // side * WIDTH + x * WIDTH // side for x in range(side)] for y in range(side)]
            owned = {n: encode(projector.position, torch.tensor(ids), n, batch.decoder_pe) for n in real}
        else:
            owned = {n: sum(shares[s][n] * positions[s] for s in regions) for n in real}
        keyed = [patches[n] + owned[n] for n in real]
        refined = _ssa(projector.aggregation, coarse, positions, [patches[n] for n in real], keyed)
    return [_two_layers(projector.project, r + p) for r, p in zip(refined, positions, strict=True)]


REFERENCES: dict[str, Reference] = {"mlp": _mlp, "pooling": _pooling, "svp": _svp}


def test_every_projector_has_a_reference() -> None:
    assert sorted(REFERENCES) == projectors.names()


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
@torch.no_grad()
def test_a_projector_equals_its_reference(name: str, settings: dict[str, Any]) -> None:
    projector = build(name, settings)
    _unsettle(projector)
    batch = features()
    tokens = projector(batch)
    for image in range(len(batch.patches)):
        expected = torch.stack(REFERENCES[name](projector, batch, image))
        torch.testing.assert_close(tokens.embeds[image][tokens.mask[image]], expected, atol=1e-5, rtol=1e-5)


def _unsettle(projector: nn.Module) -> None:
    """Moves weights away from ones and zeros, at which a forgotten scale or bias would not show."""
    generator = torch.Generator().manual_seed(3)
    for parameter in projector.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
