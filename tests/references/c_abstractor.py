"""The C-Abstractor, location by location, with each convolution as a sum over the neighbours of a location."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops

Map = dict[tuple[int, int], Tensor]
"""Values of the valid locations of a grid, by (row, column)."""

TOKENS_OF_WIDTH = {24: 9, 16: 16}
"""The official forward infers the number of tokens from the weights; cells of 9 tokens do not overlap, of 16 do."""
VARIANTS: list[dict[str, Any]] = [
    {"width": width, "tokens": tokens, "depth": depth}
    for (width, tokens), depth in zip(TOKENS_OF_WIDTH.items(), (1, 2), strict=True)
]
PARAMETERS = [({}, 37_398_016)]
OTHER_MODULES = (
    "language_model.lm_head.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "vision_model.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    patches = {
        (n // WIDTH, n % WIDTH): batch.patches[image, n] + projector.positions[0, n]
        for n in range(HEIGHT * WIDTH)
        if batch.patch_mask[image, n]
    }
    patches = _stage(projector.among_patches, patches)
    side = round(projector.config.tokens**0.5)
    cells: Map = {}
    for i in range(side):
        for j in range(side):
            rows = range(i * HEIGHT // side, -(-(i + 1) * HEIGHT // side))
            columns = range(j * WIDTH // side, -(-(j + 1) * WIDTH // side))
            inside = [patches[y, x] for y in rows for x in columns if (y, x) in patches]
            if inside:
                cells[i, j] = torch.stack(inside).mean(0)
    first, _, second = projector.project
    return [second(F.silu(first(cell))) for cell in _stage(projector.among_cells, cells).values()]


def _stage(stage: Any, maps: Map) -> Map:
    for block in stage.children():
        maps = _block(block, maps)
    return maps


def _block(block: Any, maps: Map) -> Map:
    inner = {
        at: F.silu(_norm(block.conv1.bn, block.conv1.conv.weight[:, :, 0, 0] @ value)) for at, value in maps.items()
    }
    inner = {at: F.silu(_norm(block.conv2.bn, _neighbours(block.conv2.conv.weight, inner, at))) for at in inner}
    mean = torch.stack(list(inner.values())).mean(0)
    squeezed = F.silu(block.se.fc1.weight[:, :, 0, 0] @ mean + block.se.fc1.bias)
    gate = torch.sigmoid(block.se.fc2.weight[:, :, 0, 0] @ squeezed + block.se.fc2.bias)
    out = {}
    for at, value in inner.items():
        shortcut = maps[at]
        if len(shortcut) != len(value):
            shortcut = _norm(block.downsample.bn, block.downsample.conv.weight[:, :, 0, 0] @ shortcut)
        out[at] = F.silu(_norm(block.conv3.bn, block.conv3.conv.weight[:, :, 0, 0] @ (value * gate)) + shortcut)
    return out


def _neighbours(weight: Tensor, maps: Map, at: tuple[int, int]) -> Tensor:
    """A depthwise 3 x 3 convolution."""
    y, x = at
    return sum(
        (
            weight[:, 0, i, j] * maps[y + i - 1, x + j - 1]
            for i in range(3)
            for j in range(3)
            if (y + i - 1, x + j - 1) in maps
        ),
        start=torch.zeros(len(weight), dtype=weight.dtype),
    )


def _norm(norm: Any, value: Tensor) -> Tensor:
    return (value - value.mean()) / (value.var(correction=0) + 1e-5) ** 0.5 * norm.weight + norm.bias


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    (c, width), tokens = (projector.dims.vision, projector.config.width), projector.config.tokens
    total = linear_flops(projector.project, tokens)
    for locations, entering in ((projector.dims.num_patches, c), (tokens, width)):
        for block in range(projector.config.depth):
            ins = width if block else entering
            squeezed = 2 * 2 * width * round(ins / 4)
            total += 2 * locations * (ins * width + 9 * width + width**2) + squeezed
            total += 2 * locations * ins * width if ins != width else 0
    return total


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d, width = projector.dims.vision, projector.dims.language, projector.config.width
    shapes: dict[str, tuple[int, ...]] = {"pos_emb": (1, projector.dims.num_patches, c)}
    for stage, entering in ((0, c), (2, width)):
        for block in range(projector.config.depth):
            ins, name = (width if block else entering), f"net.{stage}.b{block + 1}."
            convolutions = {"conv1": (width, ins, 1, 1), "conv2": (width, 1, 3, 3), "conv3": (width, width, 1, 1)}
            convolutions |= {"downsample": (width, ins, 1, 1)} if ins != width else {}
            for part, shape in convolutions.items():
                shapes |= {f"{name}{part}.conv.weight": shape}
                shapes |= {f"{name}{part}.bn.{of}": (width,) for of in ("weight", "bias")}
            squeezed = round(ins / 4)
            for part, (out, into) in {"fc1": (squeezed, width), "fc2": (width, squeezed)}.items():
                shapes |= {f"{name}se.{part}.weight": (out, into, 1, 1), f"{name}se.{part}.bias": (out,)}
    for layer, shape in {"readout.0": (d, width), "readout.2": (d, d)}.items():
        shapes |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    return shapes


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    maps = (batch.patches + state["pos_emb"]).mT.unflatten(-1, (HEIGHT, WIDTH))
    maps = _official_stage(state, maps, 0)
    maps = F.adaptive_avg_pool2d(maps, round(TOKENS_OF_WIDTH[maps.shape[1]] ** 0.5))
    tokens = _official_stage(state, maps, 2).flatten(2).mT
    hidden = F.silu(F.linear(tokens, state["readout.0.weight"], state["readout.0.bias"]))
    return F.linear(hidden, state["readout.2.weight"], state["readout.2.bias"])


def _official_stage(state: Mapping[str, Tensor], maps: Tensor, stage: int) -> Tensor:
    block = 1
    while f"net.{stage}.b{block}.conv1.conv.weight" in state:
        name = f"net.{stage}.b{block}."
        inner = F.silu(_official_convolution(state, f"{name}conv1", maps))
        inner = F.silu(_official_convolution(state, f"{name}conv2", inner))
        gate = F.conv2d(inner.mean((2, 3), keepdim=True), state[f"{name}se.fc1.weight"], state[f"{name}se.fc1.bias"])
        gate = F.conv2d(F.silu(gate), state[f"{name}se.fc2.weight"], state[f"{name}se.fc2.bias"]).sigmoid()
        has_shortcut = f"{name}downsample.conv.weight" in state
        shortcut = _official_convolution(state, f"{name}downsample", maps) if has_shortcut else maps
        maps = F.silu(_official_convolution(state, f"{name}conv3", inner * gate) + shortcut)
        block += 1
    return maps


def _official_convolution(state: Mapping[str, Tensor], name: str, maps: Tensor) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    groups = maps.shape[1] // weight.shape[1]
    maps = F.conv2d(maps, weight, padding=weight.shape[-1] // 2, groups=groups).movedim(1, -1)
    return F.layer_norm(maps, maps.shape[-1:], state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], 1e-5).movedim(
        -1, 1
    )
