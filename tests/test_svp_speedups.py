"""The order of operations that saves time in SVP gives the tokens and gradients of the plain formulas."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import projectors
from projectors import Dims, Projector, VisualFeatures
from projectors.layers import area_fractions
from projectors.svp.regions import Regions
from tests.naive_svp import naive_areas, naive_svp

DIMS = Dims(vision=96, language=48, grid=(8, 8), frame=112, decoder=16, max_superpixels=20)
SSPE = {"name": "sspe", "width": 32, "resolution": 4}
SSA = {"name": "ssa", "width": 64}
VARIANTS: list[dict[str, Any]] = [
    {"position": SSPE, "aggregation": SSA},
    {"position": {**SSPE, "resolution": 8}, "aggregation": SSA},
    {"position": {**SSPE, "resolution": 5, "blocks": 1, "queries": 2}, "aggregation": SSA},
    {"position": {**SSPE, "keys": "decoder_pe"}, "aggregation": {**SSA, "key_position": "patch"}},
]


def label_maps(batch: int, side: int, count: int) -> Tensor:
    """(B, R, R): irregular regions, fewer in every further image, and padding below those of the second."""
    generator = torch.Generator().manual_seed(0)
    at = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1).float()
    maps = []
    for image in range(batch):
        centres = side * torch.rand(count - 4 * image, 2, generator=generator)
        nearest = (at[..., None, :] - centres).square().sum(-1).argmin(-1)
        maps.append(nearest.unique(return_inverse=True)[1].view(side, side))
    labels = torch.stack(maps)
    labels[1, side // 2 :] = -1
    labels[1] = labels[1].unique(return_inverse=True)[1].view(side, side) - 1
    return labels


def build(settings: dict[str, Any]) -> Projector:
    """An SVP whose norms have a scale and a shift, as after training."""
    torch.manual_seed(0)
    projector = projectors.get("svp")(projectors.get("svp").Config(**settings), DIMS)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return projector


def images() -> VisualFeatures:
    generator = torch.Generator().manual_seed(1)
    labels = label_maps(3, DIMS.frame, DIMS.max_superpixels)
    patch_mask = torch.ones(3, *DIMS.grid, dtype=torch.bool)
    patch_mask[1, DIMS.grid[0] // 2 :] = False
    return VisualFeatures(
        patches=3 * torch.randn(3, DIMS.num_patches, DIMS.vision, generator=generator) + 1,
        patch_mask=patch_mask.flatten(1),
        superpixels=labels,
        decoder_pe=torch.randn(DIMS.decoder, 8, 8, generator=generator),
    )


def gradients(projector: Projector, embeds: Tensor) -> dict[str, Tensor]:
    projector.zero_grad()
    weights = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(2))
    (weights * embeds).sum().backward()
    return {name: parameter.grad for name, parameter in projector.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("settings", VARIANTS)
def test_tokens_and_gradients_are_those_of_the_plain_formulas(settings: dict[str, Any]) -> None:
    projector, batch = build(settings), images()
    expected = naive_svp(projector, batch)
    expected_gradients = gradients(projector, expected)
    embeds = projector(batch).embeds
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(projector, embeds).items():
        expected = expected_gradients[name]
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("settings", VARIANTS)
def test_bfloat16_gradients_are_close_to_those_in_float32(settings: dict[str, Any]) -> None:
    projector, batch = build(settings), images()
    exact = gradients(projector, projector(batch).embeds)
    with torch.autocast("cpu", torch.bfloat16):
        embeds = projector(batch).embeds
    for name, gradient in gradients(projector, embeds).items():
        assert (gradient - exact[name]).norm() < 0.1 * exact[name].norm(), name


def test_patches_receive_the_gradients_of_the_plain_formulas() -> None:
    projector, batch = build(VARIANTS[0]), images()
    expected, patches = (batch.patches.clone().requires_grad_() for _ in range(2))
    naive_svp(projector, replace(batch, patches=expected)).square().mean().backward()
    projector(replace(batch, patches=patches)).embeds.square().mean().backward()
    torch.testing.assert_close(patches.grad, expected.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [112, 45])
@pytest.mark.parametrize("sizes", [[(8, 8), (4, 4), (4, 2)], [(4, 4), (8, 8)], [(8, 8), (5, 5), (1, 8)]])
def test_areas_do_not_depend_on_grids_counted_before(side: int, sizes: list[tuple[int, int]]) -> None:
    labels = label_maps(3, side, 12)
    regions = Regions(labels, 12)
    for size in sizes:
        areas = regions.areas(size)
        assert torch.equal(areas, area_fractions(labels, 12, size))
        torch.testing.assert_close(areas, naive_areas(labels, 12, size))


def test_counting_pixels_leaves_the_label_map_unchanged() -> None:
    labels = label_maps(2, 45, 12).int()
    before = labels.clone()
    area_fractions(labels, 12, (8, 8))
    assert torch.equal(labels, before)
