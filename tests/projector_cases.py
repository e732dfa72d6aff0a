"""Small backbones, images and configurations that the projector tests share."""

from typing import Any

import torch

import projectors
from projectors import Dims, Projector, VisualFeatures

# Neither the frame nor the grid divides evenly by what the projectors lay over them.
DIMS = Dims(vision=24, language=20, grid=(6, 6), frame=45, decoder=16, max_superpixels=7)

_SSPE = {"name": "sspe", "blocks": 2, "queries": 3, "heads": 2, "width": 16, "resolution": 7}
_SSA = {"name": "ssa", "heads": 2, "width": 16}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mlp": [{}, {"depth": 1}],
    "pooling": [{"tokens": 9}, {"tokens": 16}, {"tokens": 36}],
    "svp": [
        {"aggregation": "none", "position": "none"},
        {"aggregation": "none", "position": "bbox_mlp"},
        {"aggregation": "none", "position": "decoder_pe"},
        {"aggregation": "none", "position": _SSPE},
        {"aggregation": _SSA, "position": "none"},
        {"aggregation": _SSA, "position": _SSPE},
        {"aggregation": _SSA, "position": {**_SSPE, "keys": "decoder_pe"}},
        {"aggregation": {**_SSA, "key_position": "patch"}, "position": _SSPE},
        {"aggregation": {**_SSA, "key_position": "patch"}, "position": "decoder_pe"},
    ],
}
# A projector that nobody listed is tested with its defaults.
CASES = [(name, settings) for name in projectors.names() for settings in VARIANTS.get(name, [{}])]
IDS = [f"{name}-{index}" for index, (name, _) in enumerate(CASES)]


def build(name: str, settings: dict[str, Any], dims: Dims = DIMS) -> Projector:
    """The projector with weights that do not depend on what ran before."""
    torch.manual_seed(0)
    projector = projectors.get(name)
    return projector(projector.Config(**settings), dims).double()


def features(batch: int = 3) -> VisualFeatures:
    """Images of different size, the first without padding, the others padded on the right or below."""
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
    return VisualFeatures(
        patches=torch.randn(batch, height * width, DIMS.vision, generator=generator, dtype=torch.float64),
        patch_mask=patch_mask.flatten(1),
        superpixels=superpixels,
        decoder_pe=torch.rand(DIMS.decoder, 11, 11, generator=generator, dtype=torch.float64) * 2 - 1,
    )


def one_image(batch: VisualFeatures, index: int) -> VisualFeatures:
    """An image of a batch as a batch of its own."""
    at = slice(index, index + 1)
    assert batch.superpixels is not None
    return VisualFeatures(batch.patches[at], batch.patch_mask[at], batch.superpixels[at], batch.decoder_pe)
