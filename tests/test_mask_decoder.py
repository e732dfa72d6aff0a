"""SAM's decoder for many images at once is SAM's decoder."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from torch.testing import assert_close

from harness.model.config import MaskDecoderConfig
from harness.model.mask_decoder.decoder import ImageEmbedding, MaskDecoder, PatchEmbedding, build_mask_decoder
from harness.model.mask_decoder.point_prompted import PointPromptedMaskDecoder


def _head(side: int, depth: int, *, image_update: bool = True, pixel_width: int | None = None) -> MaskDecoder:
    """A decoder in the middle of training: at the start its residual branches are zero and would hide mistakes."""
    torch.manual_seed(0)
    config = MaskDecoderConfig(
        width=32, depth=depth, mlp_width=64, heads=4, image_update=image_update, pixel_width=pixel_width
    )
    head = build_mask_decoder(config, (side, side), 16 * side)
    with torch.no_grad():
        for parameter in head.sam_decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


@pytest.mark.parametrize(("depth", "pixel_width"), [(1, None), (2, None), (3, None), (2, 12)])
def test_each_image_equals_the_upstream_decoder(depth, pixel_width):
    head = _head(6, depth, pixel_width=pixel_width)
    coarse, prompts = torch.randn(3, 32, 6, 6), torch.randn(5, 32)
    image = torch.tensor([0, 2, 2, 1, 0])
    with torch.inference_mode():
        ours = head(ImageEmbedding(coarse), prompts, image)
        for index in range(3):
            mine = image == index
            _, dense = head.prompt_encoder(points=None, boxes=None, masks=None)
            theirs, _ = head.sam_decoder(
                image_embeddings=coarse[index : index + 1],
                image_pe=head.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompts[mine].unsqueeze(1),
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            assert_close(ours[mine], theirs[:, 0], atol=1e-5, rtol=0)


def test_a_point_agrees_best_with_where_it_lies():
    head = _head(6, 1)
    cells = head.positional_encoding(6).flatten(1).T
    location_logits = head.location_logits(3 * cells)
    assert location_logits.shape == (36, 6, 6)
    assert torch.equal(location_logits.flatten(1).argmax(1), torch.arange(36))


def _pointed(side: int) -> PointPromptedMaskDecoder:
    """An upstream decoder of three alternatives, with weights of which none is zero."""
    torch.manual_seed(0)
    encoder = PromptEncoder(
        embed_dim=32, image_embedding_size=(side, side), input_image_size=(8 * side, 8 * side), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4)
    decoder = SamMaskDecoder(transformer_dim=32, transformer=transformer, num_multimask_outputs=3)
    return PointPromptedMaskDecoder(encoder, decoder).eval()


def _likely(location_logits: list[dict[tuple[int, int], float]], side: int) -> torch.Tensor:
    """Place logits whose softmax has these shares at (row, column)."""
    shares = torch.full((len(location_logits), side, side), 1e-9)
    for number, found in enumerate(location_logits):
        for place, share in found.items():
            shares[(number, *place)] = share
    return shares.log()


def test_a_state_means_the_likely_places_and_the_middle_of_each():
    sure = {(4, 7): 1.0}
    between = {(2, 2): 0.25, (2, 3): 0.75}
    two = {(1, 1): 0.5, (10, 9): 0.3, (10, 1): 0.2}
    points, is_meant = _pointed(12).points(_likely([sure, between, two], 12))
    assert is_meant.tolist() == [[True, False, False, False]] * 2 + [[True, True, False, False]]
    # Cells are 8 pixels wide, and upstream counts a point from the middle of its pixel.
    assert_close(points[0, 0], torch.tensor([8 * 7.5, 8 * 4.5]) - 0.5)
    assert_close(points[1, 0], torch.tensor([8 * 3.25, 8 * 2.5]) - 0.5)
    assert_close(points[2, :2], torch.tensor([[12.0, 12.0], [76.0, 84.0]]) - 0.5)


def test_a_mask_is_all_that_upstream_answers_to_its_points():
    head = _pointed(12)
    coarse, image = torch.randn(2, 32, 12, 12), torch.tensor([1, 0])
    location_logits = _likely([{(4, 7): 1.0}, {(1, 1): 0.5, (10, 9): 0.5}], 12)
    answers = []
    with torch.inference_mode():
        for number, clicks in ((1, [[59.5, 35.5]]), (0, [[11.5, 11.5], [75.5, 83.5]])):
            points = torch.tensor(clicks).unsqueeze(1), torch.ones(len(clicks), 1)
            sparse, dense = head.prompt_encoder(points=points, boxes=None, masks=None)
            masks, scores = head.sam_decoder(
                image_embeddings=coarse[number : number + 1],
                image_pe=head.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            answers.append(masks[torch.arange(len(clicks)), scores.argmax(1)].amax(0))
        head.location_logits = lambda _: location_logits
        assert_close(head(ImageEmbedding(coarse), torch.zeros(2, 32), image), torch.stack(answers), atol=1e-5, rtol=0)


def test_nothing_of_a_pointed_sam_learns():
    head = _pointed(4)
    assert not head.learns
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_points_are_answered_as_upstream_answers_them():
    """Several images at once; masks of too low a predicted IoU are left out, the rest are upstream's."""
    torch.manual_seed(0)
    prompt_encoder = PromptEncoder(32, (6, 6), (48, 48), 16)
    decoder = SamMaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(2, 32, 4, 64))
    head = MaskDecoder(prompt_encoder, decoder)
    coarse, points, image = torch.randn(3, 32, 6, 6), 48 * torch.rand(7, 2), torch.tensor([0, 2, 2, 1, 0, 1, 1])
    with torch.inference_mode():
        sparse, dense = prompt_encoder(points=(points[:, None], torch.ones(7, 1)), boxes=None, masks=None)
        theirs = [
            decoder(
                image_embeddings=coarse[image[i : i + 1]],
                image_pe=prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse[i : i + 1],
                dense_prompt_embeddings=dense[:1],
                multimask_output=True,
            )
            for i in range(7)
        ]
        masks, ious = torch.cat([masks for masks, _ in theirs]), torch.cat([ious for _, ious in theirs])
        # Between two masks, so that rounding moves none of them across.
        below, above = ious.flatten().sort().values[10:12].tolist()
        assert above - below > 1e-3
        threshold = (below + above) / 2
        found = head.at_points(ImageEmbedding(coarse), points, image, threshold)
    assert len(found.logits) == (ious > threshold).sum() == 10
    assert_close(found.predicted_iou, ious[found.prompt, found.level], atol=1e-5, rtol=0)
    assert_close(found.logits, masks[found.prompt, found.level], atol=1e-5, rtol=0)


@pytest.mark.parametrize("image_update", [True, False])
def test_details_land_on_the_pixels_they_come_from(image_update):
    """A detail that differs in one cell changes the mask in that cell alone."""
    head = _head(4, 1, image_update=image_update)
    coarse, prompts, image = torch.randn(1, 32, 4, 4), torch.randn(1, 32), torch.tensor([0])
    middle, fine = torch.zeros(1, 8, 8, 8), torch.zeros(1, 4, 16, 16)
    with torch.inference_mode():
        plain = head(ImageEmbedding(coarse, (middle, fine)), prompts, image)
        fine_changed = fine.clone()
        fine_changed[0, :, 3, 9] = 5.0
        changed = (head(ImageEmbedding(coarse, (middle, fine_changed)), prompts, image) != plain)[0]
        assert changed.nonzero().tolist() == [[3, 9]]
        middle_changed = middle.clone()
        middle_changed[0, 0, 5, 2] = 5.0
        changed = (head(ImageEmbedding(coarse, (middle_changed, fine)), prompts, image) != plain)[0]
        assert changed.nonzero().tolist() == [[10, 4], [10, 5], [11, 4], [11, 5]]


@pytest.mark.parametrize("pixel_width", [None, 12])
@pytest.mark.parametrize("image_update", [True, False])
def test_everything_that_should_learn_gets_a_gradient(image_update, pixel_width):
    head = _head(4, 2, image_update=image_update, pixel_width=pixel_width)
    embed = PatchEmbedding(24, head, (4, 4))
    embedding = embed(torch.randn(2, 16, 24), torch.rand(2, 3, 64, 64))
    head(embedding, torch.randn(3, 32), torch.tensor([0, 1, 1])).square().mean().backward()
    for name, parameter in [*head.named_parameters(), *embed.named_parameters()]:
        if parameter.requires_grad and "iou_token" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_prompts_do_not_depend_on_who_else_asks():
    """With and without the image's update: shuffled, grouped unevenly and alone, a prompt gets the same mask."""
    coarse, prompts = torch.randn(3, 32, 4, 4), torch.randn(5, 32)
    image = torch.tensor([2, 0, 2, 1, 2])
    for image_update in (True, False):
        head = _head(4, 2, image_update=image_update).eval()
        with torch.inference_mode():
            together = head(ImageEmbedding(coarse), prompts, image)
            for number in range(5):
                one = slice(number, number + 1)
                alone = head(ImageEmbedding(coarse[image[one]]), prompts[one], torch.tensor([0]))
                assert_close(together[one], alone, atol=1e-5, rtol=1e-4)
