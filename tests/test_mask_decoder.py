"""The batched mask decoder equals SAM's decoder on single images."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from torch.testing import assert_close

from harness.model.config import MaskDecoderConfig
from harness.model.mask_decoder import decoder as module
from harness.model.mask_decoder.decoder import ImageEmbedding, MaskDecoder, PatchEmbedding
from harness.model.mask_decoder.from_scratch import build_mask_decoder
from harness.model.mask_decoder.point_prompted import PointPromptedMaskDecoder
from harness.model.mask_decoder.two_way import GroupSizes


def _decoder(side: int, depth: int, *, image_update: bool = True, pixel_width: int | None = None) -> MaskDecoder:
    """A mask decoder with perturbed weights, because residual branches of zero would hide mistakes."""
    torch.manual_seed(0)
    config = MaskDecoderConfig(
        width=32, depth=depth, mlp_width=64, heads=4, image_update=image_update, pixel_width=pixel_width
    )
    decoder = build_mask_decoder(config, (side, side), 16 * side)
    with torch.no_grad():
        for parameter in decoder.sam_decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


@pytest.mark.parametrize(("depth", "pixel_width"), [(1, None), (2, None), (3, None), (2, 12)])
def test_each_image_equals_the_upstream_decoder(depth, pixel_width):
    decoder = _decoder(6, depth, pixel_width=pixel_width)
    coarse, prompts = torch.randn(3, 32, 6, 6), torch.randn(5, 32)
    image = torch.tensor([0, 2, 2, 1, 0])
    with torch.inference_mode():
        ours = decoder(ImageEmbedding(coarse), prompts, image)
        for index in range(3):
            mine = image == index
            _, dense = decoder.prompt_encoder(points=None, boxes=None, masks=None)
            theirs, _ = decoder.sam_decoder(
                image_embeddings=coarse[index : index + 1],
                image_pe=decoder.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompts[mine].unsqueeze(1),
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            assert_close(ours[mine], theirs[:, 0], atol=1e-5, rtol=0)


def test_location_logits_of_a_point_are_largest_at_its_cell():
    decoder = _decoder(6, 1)
    cells = decoder.positional_encoding(6).flatten(1).T
    location_logits = decoder.location_logits(3 * cells)
    assert location_logits.shape == (36, 6, 6)
    assert torch.equal(location_logits.flatten(1).argmax(1), torch.arange(36))


def _point_prompted(side: int) -> PointPromptedMaskDecoder:
    """A decoder with three masks per point and upstream's initial weights, none of which is zero."""
    torch.manual_seed(0)
    encoder = PromptEncoder(
        embed_dim=32, image_embedding_size=(side, side), input_image_size=(8 * side, 8 * side), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4)
    decoder = SamMaskDecoder(transformer_dim=32, transformer=transformer, num_multimask_outputs=3)
    return PointPromptedMaskDecoder(encoder, decoder).eval()


def _logits_of(probabilities: list[dict[tuple[int, int], float]], side: int) -> torch.Tensor:
    """Location logits whose softmax has these probabilities at (row, column)."""
    logits = torch.full((len(probabilities), side, side), 1e-9)
    for number, cells in enumerate(probabilities):
        for cell, probability in cells.items():
            logits[(number, *cell)] = probability
    return logits.log()


def test_points_are_the_means_of_the_most_probable_windows():
    certain = {(4, 7): 1.0}
    between = {(2, 2): 0.25, (2, 3): 0.75}
    two = {(1, 1): 0.5, (10, 9): 0.3, (10, 1): 0.2}
    points, is_used = _point_prompted(12).points(_logits_of([certain, between, two], 12))
    assert is_used.tolist() == [[True, False, False, False]] * 2 + [[True, True, False, False]]
    # Cells are 8 pixels wide, and upstream adds 0.5 to a point.
    assert_close(points[0, 0], torch.tensor([8 * 7.5, 8 * 4.5]) - 0.5)
    assert_close(points[1, 0], torch.tensor([8 * 3.25, 8 * 2.5]) - 0.5)
    assert_close(points[2, :2], torch.tensor([[12.0, 12.0], [76.0, 84.0]]) - 0.5)


def test_a_mask_is_the_union_of_upstreams_masks_of_its_points():
    decoder = _point_prompted(12)
    coarse, image = torch.randn(2, 32, 12, 12), torch.tensor([1, 0])
    location_logits = _logits_of([{(4, 7): 1.0}, {(1, 1): 0.5, (10, 9): 0.5}], 12)
    expected = []
    with torch.inference_mode():
        for number, clicks in ((1, [[59.5, 35.5]]), (0, [[11.5, 11.5], [75.5, 83.5]])):
            points = torch.tensor(clicks).unsqueeze(1), torch.ones(len(clicks), 1)
            sparse, dense = decoder.prompt_encoder(points=points, boxes=None, masks=None)
            masks, scores = decoder.sam_decoder(
                image_embeddings=coarse[number : number + 1],
                image_pe=decoder.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            expected.append(masks[torch.arange(len(clicks)), scores.argmax(1)].amax(0))
        decoder.location_logits = lambda _: location_logits
        assert_close(
            decoder(ImageEmbedding(coarse), torch.zeros(2, 32), image), torch.stack(expected), atol=1e-5, rtol=0
        )


def test_a_point_prompted_decoder_is_frozen():
    decoder = _point_prompted(4)
    assert not decoder.learns
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_masks_at_points_equal_upstreams():
    """Several images at once; masks of low predicted IoU are left out."""
    torch.manual_seed(0)
    prompt_encoder = PromptEncoder(32, (6, 6), (48, 48), 16)
    upstream = SamMaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(2, 32, 4, 64))
    decoder = MaskDecoder(prompt_encoder, upstream)
    coarse, points, image = torch.randn(3, 32, 6, 6), 48 * torch.rand(7, 2), torch.tensor([0, 2, 2, 1, 0, 1, 1])
    with torch.inference_mode():
        sparse, dense = prompt_encoder(points=(points[:, None], torch.ones(7, 1)), boxes=None, masks=None)
        theirs = [
            upstream(
                image_embeddings=coarse[image[i : i + 1]],
                image_pe=prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse[i : i + 1],
                dense_prompt_embeddings=dense[:1],
                multimask_output=True,
            )
            for i in range(7)
        ]
        masks, ious = torch.cat([masks for masks, _ in theirs]), torch.cat([ious for _, ious in theirs])
        # A threshold between two values, so that rounding does not change which masks are kept.
        below, above = ious.flatten().sort().values[10:12].tolist()
        assert above - below > 1e-3
        threshold = (below + above) / 2
        found = decoder.at_points(ImageEmbedding(coarse), points, image, threshold)
    assert len(found.logits) == (ious > threshold).sum() == 10
    assert_close(found.predicted_iou, ious[found.prompt, found.level], atol=1e-5, rtol=0)
    assert_close(found.logits, masks[found.prompt, found.level], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (7, 7), (16, 3)])
def test_masks_do_not_depend_on_the_number_of_prompts_at_once(sizes, monkeypatch):
    """Of points in a shuffled batch, all masks and the best ones."""
    decoder = _point_prompted(6)
    coarse, points, image = torch.randn(3, 32, 6, 6), 48 * torch.rand(7, 2), torch.tensor([0, 2, 2, 1, 0, 1, 1])
    embedding = ImageEmbedding(coarse)
    with torch.inference_mode():
        best, all_masks = (
            decoder.best_at_points(embedding, points, image),
            decoder.at_points(embedding, points, image, 0.0),
        )
        monkeypatch.setattr(module, "CPU_SIZES", GroupSizes(*sizes))
        assert_close(decoder.best_at_points(embedding, points, image), best, atol=1e-5, rtol=0)
        found = decoder.at_points(embedding, points, image, 0.0)
    assert_close(found.logits, all_masks.logits, atol=1e-5, rtol=0)
    assert torch.equal(found.prompt, all_masks.prompt)
    assert torch.equal(found.level, all_masks.level)


def test_no_masks_are_decoded_without_a_point_of_high_predicted_iou():
    decoder = _point_prompted(6)
    embedding, points = ImageEmbedding(torch.randn(1, 32, 6, 6)), torch.zeros(3, 2)
    with torch.inference_mode():
        found = decoder.at_points(embedding, points, torch.zeros(3, dtype=torch.long), 9.0)
        assert found.logits.shape == (0, 24, 24)
        assert decoder.best_at_points(embedding, points[:0], torch.zeros(0, dtype=torch.long)).shape == (0, 24, 24)


@pytest.mark.parametrize("image_update", [True, False])
def test_details_affect_their_own_pixels_only(image_update):
    """A detail that differs in one cell changes the mask in that cell alone."""
    decoder = _decoder(4, 1, image_update=image_update)
    coarse, prompts, image = torch.randn(1, 32, 4, 4), torch.randn(1, 32), torch.tensor([0])
    middle, fine = torch.zeros(1, 8, 8, 8), torch.zeros(1, 4, 16, 16)
    with torch.inference_mode():
        plain = decoder(ImageEmbedding(coarse, (middle, fine)), prompts, image)
        fine_changed = fine.clone()
        fine_changed[0, :, 3, 9] = 5.0
        changed = (decoder(ImageEmbedding(coarse, (middle, fine_changed)), prompts, image) != plain)[0]
        assert changed.nonzero().tolist() == [[3, 9]]
        middle_changed = middle.clone()
        middle_changed[0, 0, 5, 2] = 5.0
        changed = (decoder(ImageEmbedding(coarse, (middle_changed, fine)), prompts, image) != plain)[0]
        assert changed.nonzero().tolist() == [[10, 4], [10, 5], [11, 4], [11, 5]]


@pytest.mark.parametrize("pixel_width", [None, 12])
@pytest.mark.parametrize("image_update", [True, False])
def test_every_trainable_parameter_gets_a_gradient(image_update, pixel_width):
    decoder = _decoder(4, 2, image_update=image_update, pixel_width=pixel_width)
    embed = PatchEmbedding(24, decoder, (4, 4))
    embedding = embed(torch.randn(2, 16, 24), torch.rand(2, 3, 64, 64))
    decoder(embedding, torch.randn(3, 32), torch.tensor([0, 1, 1])).square().mean().backward()
    for name, parameter in [*decoder.named_parameters(), *embed.named_parameters()]:
        if parameter.requires_grad and "iou_token" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_prompts_do_not_depend_on_other_prompts():
    """With and without the image's update, a prompt gets the same mask in an uneven, shuffled batch and alone."""
    coarse, prompts = torch.randn(3, 32, 4, 4), torch.randn(5, 32)
    image = torch.tensor([2, 0, 2, 1, 2])
    for image_update in (True, False):
        decoder = _decoder(4, 2, image_update=image_update).eval()
        with torch.inference_mode():
            together = decoder(ImageEmbedding(coarse), prompts, image)
            for number in range(5):
                one = slice(number, number + 1)
                alone = decoder(ImageEmbedding(coarse[image[one]]), prompts[one], torch.tensor([0]))
                assert_close(together[one], alone, atol=1e-5, rtol=1e-4)
