"""SAM's decoder for many images at once is SAM's decoder."""

import pytest
import torch
from torch.testing import assert_close

from harness.backbone.config import MaskHeadConfig
from harness.backbone.sam import ImageEmbedding, PatchEmbedding, build_mask_head


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_image_equals_the_upstream_decoder(depth):
    torch.manual_seed(0)
    head = build_mask_head(MaskHeadConfig(width=32, depth=depth, mlp_width=64, heads=4), (6, 6), 96).eval()
    coarse, prompts = torch.randn(3, 32, 6, 6), torch.randn(5, 32)
    image = torch.tensor([0, 2, 2, 1, 0])
    with torch.inference_mode():
        ours = head(ImageEmbedding(coarse), prompts, image)
        for index in range(3):
            mine = image == index
            _, dense = head.prompt_encoder(points=None, boxes=None, masks=None)
            theirs, _ = head.mask_decoder(
                image_embeddings=coarse[index : index + 1],
                image_pe=head.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompts[mine].unsqueeze(1),
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            assert_close(ours[mine], theirs[:, 0], atol=1e-5, rtol=0)


def test_details_land_on_the_pixels_they_come_from():
    """A detail that differs in one cell changes the mask in that cell alone."""
    torch.manual_seed(0)
    head = build_mask_head(MaskHeadConfig(width=32, depth=1, mlp_width=32, heads=4), (4, 4), 64).eval()
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


def test_everything_that_should_learn_gets_a_gradient():
    torch.manual_seed(0)
    head = build_mask_head(MaskHeadConfig(width=32, depth=2, mlp_width=32, heads=4), (4, 4), 64)
    embed = PatchEmbedding(24, 32, (4, 4))
    embedding = embed(torch.randn(2, 16, 24), torch.rand(2, 3, 64, 64))
    head(embedding, torch.randn(3, 32), torch.tensor([0, 1, 1])).square().mean().backward()
    for name, parameter in [*head.named_parameters(), *embed.named_parameters()]:
        if parameter.requires_grad and "iou_token" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
