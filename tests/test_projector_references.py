"""Each projector equals a reference of plain loops that shares none of its code; the formulas are those of the papers.

In float64, where the two orders of summation agree to 1e-5 with a wide margin.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import projectors
from harness.evaluation.cost import counting_flops
from projectors import Dims
from tests.projector_cases import build, features, images, required
from tests.references import CASES, REFERENCES

LLAVA = Dims(vision=1024, language=4096, grid=(24, 24), frame=336, decoder=256, max_superpixels=40, vision_blocks=24)
OURS = [case for case in CASES if projectors.get(case[0]).__module__.startswith("projectors.")]
"""Without those of installed packages, which bring their own tests."""
every_case = pytest.mark.parametrize(("name", "settings"), OURS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(OURS)])
PUBLISHED = [name for name, reference in REFERENCES.items() if hasattr(reference, "official_forward")]
COUNTED = [(name, *pair) for name, reference in REFERENCES.items() for pair in getattr(reference, "PARAMETERS", [])]


def test_every_projector_has_a_reference() -> None:
    assert sorted(REFERENCES) == sorted({name for name, _ in OURS})


@every_case
@torch.no_grad()
def test_a_projector_equals_its_reference(name: str, settings: dict[str, Any]) -> None:
    projector = build(name, settings)
    _perturb(projector)
    batch = required(features(), projector)
    tokens = projector(batch)
    for image in range(len(batch.patches)):
        expected = torch.stack(REFERENCES[name].reference(projector, batch, image))
        torch.testing.assert_close(tokens.embeds[image][tokens.mask[image]], expected, atol=1e-5, rtol=1e-5)


@every_case
@torch.no_grad()
def test_flops_are_those_of_the_formula(name: str, settings: dict[str, Any]) -> None:
    projector = build(name, settings)
    batch = images(required(features(), projector), slice(0, 1))
    with counting_flops(projector) as counter:
        projector(batch)
    assert counter.get_total_flops() == REFERENCES[name].flops(projector, batch)


@pytest.mark.parametrize(("name", "settings", "parameters"), COUNTED)
def test_parameters_at_the_size_of_llava_are_as_published(name: str, settings: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        projector = projectors.get(name)(projectors.get(name).Config(**settings), LLAVA)
    assert sum(p.numel() for p in projector.parameters()) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_official_weights_give_the_official_output(name: str) -> None:
    reference = REFERENCES[name]
    for settings in reference.VARIANTS:
        projector = build(name, settings)
        generator = torch.Generator().manual_seed(4)
        shapes = reference.official_shapes(projector)
        state = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
        whole = images(features(), slice(0, 1))
        whole = replace(whole, patch_mask=torch.ones_like(whole.patch_mask))
        extra = reference.unpublished(projector) if hasattr(reference, "unpublished") else {}
        expected = reference.official_forward({**state, **extra}, required(whole, projector))
        for published in (state, _whole_checkpoint(name, projector.official_prefix, state)):
            _reset(projector, except_for=extra)
            projector.load_official(published)
            torch.testing.assert_close(projector(required(whole, projector)).embeds, expected)


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_official_weights_that_do_not_match_are_refused(name: str, is_whole: bool) -> None:
    projector = build(name, REFERENCES[name].VARIANTS[0])
    state = {key: torch.zeros(shape) for key, shape in REFERENCES[name].official_shapes(projector).items()}
    first = next(iter(state))
    damaged = (
        {**state, f"{first}_more": torch.zeros(1)},
        {**state, first: torch.zeros(3, 3, 3, 3, 3)},
        {key: value for key, value in state.items() if key != first},
    )
    for published in damaged:
        with pytest.raises(projectors.ProjectorError, match="not official weights"):
            projector.load_official(
                _whole_checkpoint(name, projector.official_prefix, published) if is_whole else published
            )
    if not is_whole:
        with pytest.raises(projectors.ProjectorError, match="not official weights"):
            projector.load_official({**state, "another": torch.zeros(1)})


def test_weights_of_several_encoders_are_refused() -> None:
    """Cambrian's checkpoints also have the MLP and the windows of other encoders."""
    projector = build("sva", REFERENCES["sva"].VARIANTS[0])
    state = {key: torch.zeros(shape) for key, shape in REFERENCES["sva"].official_shapes(projector).items()}
    whole = _whole_checkpoint("sva", projector.official_prefix, state)
    for second in (
        "mm_projector_aux_1.0.weight",
        "vision_sampler_0.layers.0.pos_embed_1",
        "vision_sampler_1.layers.0.norm.bias",
    ):
        with pytest.raises(projectors.ProjectorError, match=second):
            projector.load_official({**whole, f"model.{second}": torch.zeros(1)})


def _whole_checkpoint(name: str, prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projector's weights in a checkpoint of the authors' whole model, with those of other modules."""
    others = dict.fromkeys(REFERENCES[name].OTHER_MODULES, torch.zeros(1))
    return {**others, **{prefix + key: value for key, value in state.items()}}


def _reset(projector: nn.Module, except_for: Collection[str]) -> None:
    for name, parameter in projector.named_parameters():
        if name not in except_for:
            parameter.zero_()


def _perturb(projector: nn.Module) -> None:
    """Move weights away from ones and zeros, which could hide a missing scale or bias."""
    generator = torch.Generator().manual_seed(3)
    for parameter in projector.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
