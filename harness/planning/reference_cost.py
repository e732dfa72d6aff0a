"""What a projector costs on one reference backbone: CLIP-L or DINOv2-L at 336 px before an LLM of width 4096.

Of its default settings, untrained: tokens, parameters and FLOPs do not depend on what the weights are.
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
"""Rows and columns of the superpixels: 40, as many as SAM's have on average in the paper."""
NOTED = 2
"""Superpixels that CLS looks at: 30 patches, where 32 stand out of the paper's images (PruMerge keeps those)."""
DECODER_GRID = 64
"""Side of the decoder's dense positional encoding, as SAM's at 1024 px."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """One projector on the reference backbone.

    Args:
        tokens: real visual tokens of an image of 40 even superpixels, of which CLS looks at two.
        parameters: all that it holds.
        flops: of this image; see `harness.evaluation.cost` for what is counted.
        needs: what it reads beside patches.
    """

    tokens: int
    parameters: int
    flops: int
    required_inputs: tuple[str, ...]


@torch.inference_mode()
def measured(name: str) -> Yardstick:
    """Builds the projector of this name without initialising it, and runs it once.

    Raises:
        ProjectorError: no such projector.
    """
    kind = projectors.get(name)
    with torch.device("meta"):
        projector = kind(kind.Config(), REFERENCE_DIMS)
    parameters = num_parameters(projector)
    # Buffers hold what a constructor computed, so a projector that has some is built again where they have values.
    projector = (
        kind(kind.Config(), REFERENCE_DIMS)
        if any(True for _ in projector.buffers())
        else projector.to_empty(device="cpu")
    )
    for parameter in projector.parameters():
        parameter.zero_()
    with counting_flops(projector) as counter:
        tokens = projector.eval()(given(projector))
    layers = (f"blocks {', '.join(map(str, projector.needs_layers))}",) if projector.needs_layers else ()
    return Yardstick(
        tokens=int(tokens.mask.sum()),
        parameters=parameters,
        flops=counter.get_total_flops(),
        required_inputs=(*sorted(projector.required_inputs), *layers),
    )


def given(projector: Projector) -> VisualFeatures:
    """An image of 40 even superpixels, whose patches are alike inside each, and what else the projector asks for.

    CLS looks at `NOTED` of them.
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
        "cls_query": 0.2 * contents[:NOTED].mean(dim=0).reshape(1, HEADS, head),
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
    """(height, width) int64, which of the even superpixels a position lies in."""
    rows, columns = SUPERPIXELS
    return (torch.arange(height) * rows // height)[:, None] * columns + torch.arange(width) * columns // width
