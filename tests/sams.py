"""SAMs small enough to run in a test: upstream's classes, random weights."""

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from harness.model.mask_decoder.sam import LoadedSam
from harness.model.weights.resolution import WeightsRecord

SIDE, PATCH, WIDTH = 64, 8, 32


def random_sam() -> LoadedSam:
    """A SAM with an 8 x 8 grid, masks with sharp edges, and both low and high predicted IoU."""
    torch.manual_seed(0)
    grid = (SIDE // PATCH, SIDE // PATCH)
    encoder = ImageEncoderViT(
        SIDE, PATCH, embed_dim=32, depth=1, num_heads=2, mlp_ratio=2, out_chans=WIDTH, use_rel_pos=True
    )
    decoder = MaskDecoder(transformer_dim=WIDTH, transformer=TwoWayTransformer(2, WIDTH, 4, 64), iou_head_hidden_dim=32)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
        decoder.iou_prediction_head.layers[-1].weight.mul_(0.2)
        decoder.iou_prediction_head.layers[-1].bias.add_(1.0)
        for network in decoder.output_hypernetworks_mlps:
            network.layers[-1].weight.mul_(25.0)
    sam = Sam(encoder, PromptEncoder(WIDTH, grid, (SIDE, SIDE), 16), decoder)
    return LoadedSam(sam, WeightsRecord("random-sam", "random", "seed 0", "0" * 64))
