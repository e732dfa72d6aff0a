"""The contract in `projectors/contract.py`, tested for every registered projector."""

from dataclasses import replace
from inspect import getmodule
from typing import Any

import pytest
import torch
from einops import rearrange
from pydantic import ValidationError

import projectors
from projectors import IncompatibleError, VisualFeatures, VisualTokens
from projectors.svp.regions import POSITION_GAIN, Regions
from projectors.svp.sspe import SSPE
from tests.projector_cases import DIMS, build, features, images, required
from tests.references import CASES, IDS, REFERENCES

every_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)


def _tokens(name: str, settings: dict[str, Any], batch: VisualFeatures) -> VisualTokens:
    projector = build(name, settings)
    return projector(required(batch, projector))


@every_case
def test_shapes_and_types_are_those_of_the_contract(name: str, settings: dict[str, Any]) -> None:
    tokens = _tokens(name, settings, features())
    batch, count, width = tokens.embeds.shape
    assert (batch, width) == (3, DIMS.language)
    assert tokens.embeds.dtype == torch.float64
    assert tokens.mask.dtype == torch.bool
    assert tokens.mask.shape == (batch, count)
    if tokens.regions is not None:
        assert tokens.regions.shape == (batch, count, DIMS.num_patches)


@every_case
def test_every_image_has_a_token_and_none_has_more_than_declared(name: str, settings: dict[str, Any]) -> None:
    projector = build(name, settings)
    counts = _tokens(name, settings, features()).mask.sum(-1)
    assert counts.min() >= 1
    assert counts.max() <= projector.max_tokens


@every_case
def test_padding_rows_are_zero(name: str, settings: dict[str, Any]) -> None:
    tokens = _tokens(name, settings, features())
    assert not tokens.embeds[~tokens.mask].any()
    if tokens.regions is not None:
        assert not tokens.regions[~tokens.mask].any()


@every_case
def test_regions_are_shares_of_valid_patches(name: str, settings: dict[str, Any]) -> None:
    batch = features()
    tokens = _tokens(name, settings, batch)
    regions = tokens.regions
    if regions is None:
        return
    assert regions.min() >= 0
    assert regions.max() <= 1
    assert not regions.movedim(1, 2)[~batch.patch_mask].any()
    assert torch.equal(regions.any(dim=-1), tokens.mask)


@every_case
def test_every_parameter_has_a_gradient(name: str, settings: dict[str, Any]) -> None:
    projector = build(name, settings)
    tokens = projector(required(features(), projector))
    (tokens.embeds * torch.randn(tokens.embeds.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    dead = {key for key, p in projector.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    known = getattr(REFERENCES.get(name), "WITHOUT_GRADIENT", ())
    assert dead == {key for key, _ in projector.named_parameters() if key.endswith(known)}


@every_case
def test_an_image_gives_the_same_tokens_alone_and_in_a_batch(name: str, settings: dict[str, Any]) -> None:
    batch = features()
    together = _tokens(name, settings, batch)
    for index in range(3):
        alone = _tokens(name, settings, images(batch, slice(index, index + 1)))
        torch.testing.assert_close(alone.embeds[alone.mask], together.embeds[index][together.mask[index]])


@every_case
def test_the_content_of_padding_changes_nothing(name: str, settings: dict[str, Any]) -> None:
    batch = features()
    fields = {"patches": batch.patches, "keys": batch.keys, "layers": batch.layers}
    masks = {"patches": "b n -> b n 1", "keys": "b n -> b 1 n 1", "layers": "b n -> b 1 n 1"}
    other = {
        field: value.where(rearrange(batch.patch_mask, masks[field]), torch.full_like(value, 100.0))
        for field, value in fields.items()
        if value is not None
    }
    before = _tokens(name, settings, batch)
    after = _tokens(name, settings, replace(batch, **other))
    assert torch.equal(before.mask, after.mask)
    torch.testing.assert_close(before.embeds, after.embeds)


@every_case
def test_the_same_seed_gives_the_same_tokens(name: str, settings: dict[str, Any]) -> None:
    assert torch.equal(_tokens(name, settings, features()).embeds, _tokens(name, settings, features()).embeds)


@every_case
def test_patches_reach_the_tokens(name: str, settings: dict[str, Any]) -> None:
    """All patches, or those of the regions, from the last block or an earlier one that the projector requires."""
    batch = features()
    assert batch.layers is not None
    patches, layers = (value.clone().requires_grad_() for value in (batch.patches, batch.layers))
    tokens = _tokens(name, settings, replace(batch, patches=patches, layers=layers))
    tokens.embeds.square().sum().backward()
    assert patches.grad is not None
    reached = patches.grad.abs().sum(-1) > 0
    if layers.grad is not None:
        reached = reached | (layers.grad.abs().sum((1, -1)) > 0)
    represented = batch.patch_mask if tokens.regions is None else tokens.regions.any(dim=1)
    assert torch.equal(reached, represented)
    # A projector of another package may leave out patches, if its regions do; those of this package do not.
    if name in REFERENCES:
        assert torch.equal(represented, batch.patch_mask)


@every_case
def test_late_modules_are_parts_of_the_projector(name: str, settings: dict[str, Any]) -> None:
    projector = build(name, settings)
    assert set(projector.late_modules()) <= set(projector.modules())


@every_case
def test_a_configuration_round_trips_through_json(name: str, settings: dict[str, Any]) -> None:
    config = projectors.get(name).Config(**settings)
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", projectors.names())
def test_an_unknown_setting_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="no_such_setting"):
        projectors.get(name).Config.model_validate({"no_such_setting": 1})


@pytest.mark.parametrize("name", projectors.names())
def test_the_source_is_cited(name: str) -> None:
    module = getmodule(projectors.get(name))
    assert module is not None
    assert "\nSource: " in str(module.__doc__)


@pytest.mark.parametrize("name", projectors.names())
def test_the_licence_of_the_original_is_named(name: str) -> None:
    module = getmodule(projectors.get(name))
    assert module is not None
    assert "\nLicence: " in str(module.__doc__)


@every_case
@torch.no_grad()
def test_bfloat16_changes_little(name: str, settings: dict[str, Any]) -> None:
    projector = build(name, settings).float()
    batch = images(required(features(), projector), slice(0, 1))
    names = ("patches", "decoder_pe", "keys", "cls_query", "cls_key", "layers")
    tensors = {field: getattr(batch, field) for field in names}
    batch = replace(batch, **{field: value.float() for field, value in tensors.items() if value is not None})
    exact = projector(batch).embeds
    with torch.autocast("cpu", torch.bfloat16):
        rounded = projector(batch).embeds
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_a_number_of_tokens_that_is_no_square_is_refused_with_the_nearest_squares() -> None:
    with pytest.raises(ValidationError, match="use 36 or 49"):
        projectors.get("pooling").Config.model_validate({"tokens": 40})


def test_a_token_grid_finer_than_the_patches_is_incompatible() -> None:
    with pytest.raises(IncompatibleError, match="at most 36"):
        build("pooling", {"tokens": 49})


def test_svp_without_superpixels_is_incompatible() -> None:
    with pytest.raises(IncompatibleError, match=r"base\.superpixels"):
        build("svp", {}, replace(DIMS, max_superpixels=0))


def test_positions_of_patches_require_a_position() -> None:
    with pytest.raises(ValidationError, match="cannot take effect"):
        projectors.get("svp").Config.model_validate(
            {"position": "none", "aggregation": {"name": "ssa", "key_position": "patch"}}
        )


def test_a_bare_name_stands_for_its_defaults() -> None:
    config = projectors.get("svp").Config
    assert config.model_validate({"position": "bbox_mlp"}) == config.model_validate({"position": {"name": "bbox_mlp"}})


def test_parts_of_a_projector_have_no_published_weights() -> None:
    with pytest.raises(ValidationError, match="weights"):
        projectors.get("svp").Config.model_validate({"position": {"name": "sspe", "weights": "sspe.bin"}})


@pytest.mark.parametrize(
    ("settings", "required_inputs"),
    [
        ({"position": "sspe"}, {"superpixels"}),
        ({"position": "decoder_pe"}, {"superpixels", "decoder_pe"}),
        ({"position": {"name": "sspe", "keys": "decoder_pe"}}, {"superpixels", "decoder_pe"}),
    ],
)
def test_svp_requires_only_the_inputs_of_its_position(settings: dict[str, Any], required_inputs: set[str]) -> None:
    assert build("svp", settings).required_inputs == required_inputs


def test_mqt_samples_even_numbers_of_queries_in_training() -> None:
    projector = build("mqt", {"tokens": 5, "max_queries": 16, "heads": 3}).train()
    torch.manual_seed(0)
    counts = {projector(features()).embeds.shape[1] for _ in range(200)}
    assert counts == set(range(2, 17, 2))
    all_tokens = build("mqt", {"tokens": 16, "max_queries": 16, "heads": 3})(features()).embeds
    torch.testing.assert_close(projector.eval()(features()).embeds, all_tokens[:, :5])


def test_sspe_embeddings_differ_between_superpixels_before_training() -> None:
    torch.manual_seed(0)
    encoder = SSPE(SSPE.Config(), replace(DIMS, vision=64))
    superpixels = features().superpixels
    assert superpixels is not None
    embeddings = encoder(Regions(superpixels[:1], int(superpixels[0].max()) + 1))[0]
    # The layer norm divided by its gain has unit scale. With queries of unit scale the value is .22, with heads that do
    # not attend to the inside .39, with both .07.
    assert embeddings.std(dim=0).mean() / POSITION_GAIN > 0.45
