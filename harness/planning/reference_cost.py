"""The cost of a projector at reference dimensions: CLIP-L or DINOv2-L at 336 px and an LLM of width 4096.

Measured with default settings and untrained weights, on which tokens, parameters and FLOPs do not depend.
"""

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

import projectors
from harness.evaluation.cost import counting_flops, num_parameters
from projectors import REFERENCE_DIMS, Projector, VisualFeatures

HEADS = 16
SUPERPIXELS = (5, 8)
"""Rows and columns of superpixels: 40 in total, the average for SAM in the paper."""
NUM_ATTENDED = 2
"""Superpixels that CLS attends to: 30 patches; PruMerge keeps 32 on average in its paper."""
DECODER_GRID = 64
"""Side of the decoder's dense positional encoding, as SAM's at 1024 px."""


@dataclass(frozen=True, slots=True)
class ReferenceCost:
    """The cost of one projector.

    Args:
        tokens: visual tokens of the image of `reference_features`, without padding.
        parameters: number of parameters.
        flops: for this image, counted as described in `harness.evaluation.cost`.
        required_inputs: inputs besides patches.
    """

    tokens: int
    parameters: int
    flops: int
    required_inputs: tuple[str, ...]


@torch.inference_mode()
def measure(name: str) -> ReferenceCost:
    """Builds the projector of this name without initializing its parameters, and runs it once.

    Raises:
        ProjectorError: there is no such projector.
    """
    kind = projectors.get(name)
    with torch.device("meta"):
        projector = kind(kind.Config(), REFERENCE_DIMS)
    parameters = num_parameters(projector)
    # Buffers hold values that the constructor computes, so a projector with buffers is built again on the CPU.
    projector = (
        kind(kind.Config(), REFERENCE_DIMS)
        if any(True for _ in projector.buffers())
        else projector.to_empty(device="cpu")
    )
    for parameter in projector.parameters():
        parameter.zero_()
    with counting_flops(projector) as counter:
        tokens = projector.eval()(reference_features(projector))
    layers = (f"blocks {', '.join(map(str, projector.needs_layers))}",) if projector.needs_layers else ()
    return ReferenceCost(
        tokens=int(tokens.mask.sum()),
        parameters=parameters,
        flops=counter.get_total_flops(),
        required_inputs=(*sorted(projector.required_inputs), *layers),
    )


def reference_features(projector: Projector) -> VisualFeatures:
    """An image of 40 equal superpixels with similar patches within each, and the inputs that the projector requires.

    CLS attends to `NUM_ATTENDED` of the superpixels.
    """
    generator = torch.Generator().manual_seed(0)
    labels = _cells(REFERENCE_DIMS.frame, REFERENCE_DIMS.frame)
    patch_labels = _cells(*REFERENCE_DIMS.grid).flatten()
    contents = torch.randn(REFERENCE_DIMS.max_superpixels, REFERENCE_DIMS.vision, generator=generator)
    patches = contents[patch_labels]
    patches = patches + 0.1 * torch.randn(patches.shape, generator=generator)
    head = REFERENCE_DIMS.vision // HEADS
    required_inputs: dict[str, Tensor] = {
        "superpixels": labels[None],
        "decoder_pe": torch.rand(REFERENCE_DIMS.decoder, DECODER_GRID, DECODER_GRID, generator=generator),
        "keys": patches.unflatten(-1, (HEADS, head)).transpose(0, 1)[None],
        "cls_query": 0.2 * contents[:NUM_ATTENDED].mean(dim=0).reshape(1, HEADS, head),
        "cls_key": torch.randn(1, HEADS, head, generator=generator),
    }
    layers = repeat(patches, "n c -> 1 k n c", k=len(projector.needs_layers)) if projector.needs_layers else None
    return VisualFeatures(
        patches=patches[None],
        patch_mask=torch.ones(1, REFERENCE_DIMS.num_patches, dtype=torch.bool),
        layers=layers,
        **{field: value for field, value in required_inputs.items() if field in projector.required_inputs},
    )


def _cells(height: int, width: int) -> Tensor:
    """(height, width) int64: the superpixel of each position."""
    rows, columns = SUPERPIXELS
    return (torch.arange(height) * rows // height)[:, None] * columns + torch.arange(width) * columns // width
