"""SVP with each of its parts, superpixel by superpixel and pixel by pixel."""

from math import ceil, floor, pi
from typing import Any

import torch
from torch import Tensor

from projectors import VisualFeatures
from tests.projector_cases import DIMS
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, linear_flops, linear_layers

_SSPE = {"name": "sspe", "blocks": 2, "queries": 3, "heads": 2, "width": 16, "resolution": 7}
_SSA = {"name": "ssa", "heads": 2, "width": 16}
VARIANTS: list[dict[str, Any]] = [
    {"aggregation": "none", "position": "none"},
    {"aggregation": "none", "position": "bbox_mlp"},
    {"aggregation": "none", "position": "decoder_pe"},
    {"aggregation": "none", "position": _SSPE},
    {"aggregation": _SSA, "position": "none"},
    {"aggregation": _SSA, "position": _SSPE},
    {"aggregation": _SSA, "position": {**_SSPE, "keys": "decoder_pe"}},
    {"aggregation": {**_SSA, "key_position": "patch"}, "position": _SSPE},
    {"aggregation": {**_SSA, "key_position": "patch"}, "position": "decoder_pe"},
]


def _pixels(labels: Tensor, region: int) -> list[tuple[int, int]]:
    return [(y, x) for y, x in (labels == region).nonzero().tolist()]


def _shares(labels: Tensor, region: int, height: int, width: int) -> list[Tensor]:
    """The share of each cell's pixels that lie in the region."""
    side = len(labels)
    inside, total = [[0] * width for _ in range(height)], [[0] * width for _ in range(height)]
    for y, row in enumerate(labels.tolist()):
        for x, label in enumerate(row):
            total[y * height // side][x * width // side] += 1
            inside[y * height // side][x * width // side] += label == region
    return list((torch.tensor(inside).double() / torch.tensor(total)).flatten())


def _no_position(encoder: Any, labels: Tensor, region: int, decoder_pe: Any) -> Tensor:  # noqa: ARG001
    return torch.zeros(DIMS.vision).double()


def _bbox_mlp(encoder: Any, labels: Tensor, region: int, decoder_pe: Any) -> Tensor:  # noqa: ARG001
    pixels = _pixels(labels, region)
    top, bottom = min(y for y, _ in pixels), max(y for y, _ in pixels) + 1
    left, right = min(x for _, x in pixels), max(x for _, x in pixels) + 1
    box = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]).double() / len(labels)
    return layer_norm(encoder.encode[1], linear_layers(encoder.encode, box))


def _decoder_pe(encoder: Any, labels: Tensor, region: int, decoder_pe: Any) -> Tensor:
    _, height, width = decoder_pe.shape
    shares = _shares(labels, region, height, width)
    cells = [decoder_pe[:, n // width, n % width] for n in range(height * width)]
    location = sum(share * cell for share, cell in zip(shares, cells, strict=True)) / sum(shares)
    share = sum(shares) / len(shares)
    size = 1 + share.clamp(min=1 / labels.numel()).log() / torch.tensor(labels.numel()).double().log()
    vector = torch.cat([location, share[None], size[None]])
    return layer_norm(encoder.encode[1], linear_layers(encoder.encode, vector))


def _cell_position(encoder: Any, y: int, x: int, decoder_pe: Any) -> Tensor:
    config = encoder.config
    if config.keys == "decoder_pe":
        _, height, width = decoder_pe.shape
        rows = slice(floor(y * height / config.resolution), ceil((y + 1) * height / config.resolution))
        columns = slice(floor(x * width / config.resolution), ceil((x + 1) * width / config.resolution))
        return linear_layers(encoder.cells, decoder_pe[:, rows, columns].mean((1, 2)))
    quarter = config.width // 4
    angles = [
        [(at + 0.5) / config.resolution * pi * config.resolution ** (k / (quarter - 1)) for k in range(quarter)]
        for at in (y, x)
    ]
    waves = [part for row in angles for part in (torch.tensor(row).double().sin(), torch.tensor(row).double().cos())]
    return torch.cat(waves)


def _sspe(encoder: Any, labels: Tensor, region: int, decoder_pe: Any) -> Tensor:
    """Without factoring: each cell's key and value are projections of position + mask * embedding."""
    config = encoder.config
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
            query = linear_layers(block.query, layer_norm(block.attention_norm, state))
            mixed = attend(query, keys, values, config.heads)
            attended = state + linear_layers(block.output, mixed)
            states[index] = attended + linear_layers(block.mlp[1:], layer_norm(block.mlp[0], attended))
    joined = torch.cat([layer_norm(encoder.norm, state) for state in states])
    return layer_norm(encoder.merge[1], linear_layers(encoder.merge, joined))


POSITIONS = {"none": _no_position, "bbox_mlp": _bbox_mlp, "decoder_pe": _decoder_pe, "sspe": _sspe}


def _ssa(
    aggregation: Any, coarse: list[Tensor], positions: list[Tensor], patches: list[Tensor], keyed: list[Tensor]
) -> list[Tensor]:
    """One query at a time over the valid patches."""
    keys = torch.stack([aggregation.key.weight @ patch for patch in keyed])
    values = torch.stack([linear_layers(aggregation.value, patch) for patch in patches])
    refined = []
    for superpixel, position in zip(coarse, positions, strict=True):
        query = linear_layers(aggregation.query, layer_norm(aggregation.norm, superpixel) + position)
        mixed = attend(query, keys, values, aggregation.heads)
        refined.append(superpixel + linear_layers(aggregation.output, mixed))
    return refined


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    assert batch.superpixels is not None
    labels = batch.superpixels[image]
    encode = POSITIONS[projector.config.position.name]
    regions = range(int(labels.max()) + 1)
    patches = [layer_norm(projector.norm, patch) for patch in batch.patches[image]]
    shares = [_shares(labels, region, HEIGHT, WIDTH) for region in regions]
    coarse = [sum(share * p for share, p in zip(row, patches, strict=True)) / sum(row) for row in shares]
    positions = [encode(projector.position, labels, region, batch.decoder_pe) for region in regions]
    refined = coarse
    if projector.config.aggregation.name == "ssa":
        valid = [n for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
        if projector.config.aggregation.key_position == "patch":
            side = len(labels)
            ids = [[y * HEIGHT // side * WIDTH + x * WIDTH // side for x in range(side)] for y in range(side)]
            owned = {n: encode(projector.position, torch.tensor(ids), n, batch.decoder_pe) for n in valid}
        else:
            owned = {n: sum(shares[s][n] * positions[s] for s in regions) for n in valid}
        keyed = [patches[n] + owned[n] for n in valid]
        refined = _ssa(projector.aggregation, coarse, positions, [patches[n] for n in valid], keyed)
    return [linear_layers(projector.project, r + p) for r, p in zip(refined, positions, strict=True)]


def flops(projector: Any, batch: VisualFeatures) -> int:
    assert batch.superpixels is not None
    s, n, c = int(batch.superpixels.max()) + 1, projector.dims.num_patches, projector.dims.vision
    total = 2 * s * n * c + _position_flops(projector, batch, s) + linear_flops(projector.project, s)
    if projector.config.aggregation.name == "ssa":
        ssa = projector.aggregation
        total += linear_flops(ssa.query, s) + linear_flops(ssa.key, n) + linear_flops(ssa.value, n)
        total += 4 * s * n * projector.config.aggregation.width + linear_flops(ssa.output, s)
        per_patch = projector.config.aggregation.key_position == "patch"
        keyed = n if per_patch else s
        # The shift of the norm is projected apart from the patches.
        total += linear_flops(ssa.key, keyed) + linear_flops(ssa.value, 1)
        total += _position_flops(projector, batch, n) if per_patch else 2 * s * n * projector.config.aggregation.width
    return total


def _position_flops(projector: Any, batch: VisualFeatures, regions: int) -> int:
    config, encoder = projector.config.position, projector.position
    if config.name == "none":
        return 0
    if config.name == "bbox_mlp":
        return linear_flops(encoder.encode, regions)
    if config.name == "decoder_pe":
        assert batch.decoder_pe is not None
        return 2 * regions * batch.decoder_pe.numel() + linear_flops(encoder.encode, regions)
    cells, rows = config.resolution**2, regions * config.queries
    total = linear_flops(encoder.merge, regions)
    if config.keys == "decoder_pe":
        total += linear_flops(encoder.cells, cells)
    for index, block in enumerate(encoder.blocks):
        # Queries are the same for all regions before the first block.
        queries = rows if index else config.queries
        total += linear_flops(block.query, queries) + linear_flops(block.output, rows) + linear_flops(block.mlp, rows)
        total += linear_flops(block.key, cells + 1) + linear_flops(block.value, cells + 1)
        # Scores with the cells and with `inside`, and weighted sums of the cells.
        total += 2 * queries * config.width * (cells + 1) + 2 * rows * config.width * cells
    return total
