"""A small backbone and images that the projector tests share."""

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import projectors
from projectors import Dims, Projector, VisualFeatures

# Most grids of the projectors do not divide the frame and the patch grid evenly.
DIMS = Dims(vision=24, language=20, grid=(6, 6), frame=45, decoder=16, max_superpixels=7, vision_blocks=4)

OPTIONAL = ("superpixels", "decoder_pe", "keys", "cls_query", "cls_key")
HEADS = 3
"""A, of the vision encoder."""


def build(name: str, settings: dict[str, Any], dims: Dims = DIMS) -> Projector:
    """Build a projector with seeded weights, in double precision."""
    torch.manual_seed(0)
    projector = projectors.get(name)
    return projector(projector.Config(**settings), dims).double().eval()


def features(batch: int = 3) -> VisualFeatures:
    """Features of images of different sizes: the first without padding, the others padded on the right or below."""
    generator = torch.Generator().manual_seed(1)
    height, width = DIMS.grid
    side = DIMS.frame
    patch_mask = torch.ones(batch, height, width, dtype=torch.bool)
    superpixels = torch.full((batch, side, side), -1)
    pixel = side / height
    for image in range(batch):
        rows = height - (0, 2, 0)[image % 3]
        columns = width - (0, 0, 3)[image % 3]
        patch_mask[image, rows:] = False
        patch_mask[image, :, columns:] = False
        region = superpixels[image, : int(rows * pixel), : int(columns * pixel)]
        # Irregular regions, fewer of them in some images, and one that is smaller than a patch.
        seeds = torch.rand(4 + image % 3, 2, generator=generator) * torch.tensor(region.shape)
        at = torch.stack(torch.meshgrid(*map(torch.arange, region.shape), indexing="ij"), dim=-1).float()
        region[:] = (at[..., None, :] - seeds).square().sum(-1).argmin(-1)
        region[4:6, 3:5] = 7
        region.copy_(region.unique(return_inverse=True)[1])

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    patches, head = noise(batch, height * width, DIMS.vision), DIMS.vision // HEADS
    return VisualFeatures(
        patches=patches,
        patch_mask=patch_mask.flatten(1),
        superpixels=superpixels,
        decoder_pe=torch.rand(DIMS.decoder, 11, 11, generator=generator, dtype=torch.float64) * 2 - 1,
        keys=noise(batch, HEADS, height * width, head),
        cls_query=noise(batch, HEADS, head),
        cls_key=noise(batch, HEADS, head),
        layers=noise(batch, DIMS.vision_blocks, height * width, DIMS.vision),
    )


def required(batch: VisualFeatures, projector: Projector) -> VisualFeatures:
    """A copy with only the optional fields that the projector requires."""
    missing = {field: None for field in OPTIONAL if field not in projector.required_inputs}
    at = [block - 1 for block in projector.needs_layers]
    return replace(batch, **missing, layers=None if batch.layers is None or not at else batch.layers[:, at])


def images(batch: VisualFeatures, at: slice) -> VisualFeatures:
    """A batch of some images of a batch."""
    shared = {"decoder_pe"}
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name not in shared}
    return replace(batch, **{name: value[at] for name, value in fields.items() if value is not None})
