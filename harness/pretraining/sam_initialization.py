"""Initial weights of sam-scenes, with which a decoder of its size learns to follow prompts early."""

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import nn

from harness.model.mask_decoder.from_scratch import initialise

POSITION_SCALE = 2.0
"""Of the frequencies of point positions; with SAM's own, neighbouring cells of a 28 x 28 grid differ too little."""
KIND_SCALE = 0.2
"""Of the embeddings that distinguish points from box corners; segment-anything's are as large as positions."""
CONTENT_SCALE = 0.3
"""Of the image features, relative to their position embeddings."""
ATTENTION_GAIN = 2.0
"""Of the query and key projections of the attention between tokens and image."""


def initialise_sam(sam: Sam) -> None:
    """Zero residual branches, sinusoidal position embeddings, and attention aligned with positions."""
    encoder, decoder = sam.image_encoder, sam.mask_decoder
    initialise(decoder)
    with torch.no_grad():
        sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(POSITION_SCALE)
        side, width = encoder.pos_embed.shape[1], encoder.pos_embed.shape[-1]
        waves = PositionEmbeddingRandom(width // 2, POSITION_SCALE)((side, side))
        encoder.pos_embed.copy_(0.2 * waves.permute(1, 2, 0).unsqueeze(0))
        for block in encoder.blocks:
            for layer in (block.attn.proj, block.mlp.lin2):
                nn.init.zeros_(layer.weight)
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(0.1)
        nn.init.zeros_(decoder.iou_prediction_head.layers[-1].weight)
        _align_attention_with_positions(sam)


def _align_attention_with_positions(sam: Sam) -> None:
    """Makes prompt tokens attend to the image cells at their own position.

    Positions outweigh the other content of tokens and cells, and queries and keys start from the same projection. With
    independent random projections, a decoder of this size long segments all objects for every prompt.
    """
    encoder, transformer = sam.prompt_encoder, sam.mask_decoder.transformer
    for embedding in (*encoder.point_embeddings, encoder.not_a_point_embed, encoder.no_mask_embed):
        embedding.weight.mul_(KIND_SCALE)
    cross_attentions = [transformer.final_attn_token_to_image]
    sam.image_encoder.neck[-1].weight.mul_(CONTENT_SCALE)
    for block in transformer.layers:
        block.norm4.weight.mul_(CONTENT_SCALE)
        cross_attentions += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
    for attention in cross_attentions:
        nn.init.orthogonal_(attention.q_proj.weight, ATTENTION_GAIN)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
