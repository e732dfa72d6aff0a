"""A mask decoder with random weights, from segment-anything's classes."""

from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import nn

from harness.model.config import MaskDecoderConfig
from harness.model.mask_decoder.decoder import MaskDecoder


def build_mask_decoder(config: MaskDecoderConfig, grid: tuple[int, int], frame: int) -> MaskDecoder:
    """Build a mask decoder from scratch from segment-anything's classes, with SAM's sizes by default."""
    width, heads = config.width or 256, config.heads or 8
    prompt_encoder = PromptEncoder(
        embed_dim=width, image_embedding_size=grid, input_image_size=(frame, frame), mask_in_chans=16
    )
    transformer = TwoWayTransformer(
        depth=config.depth or 2, embedding_dim=width, mlp_dim=config.mlp_width or 2048, num_heads=heads
    )
    decoder = SamMaskDecoder(transformer_dim=width, transformer=transformer, num_multimask_outputs=0)
    if config.pixel_width is not None:
        _widen(decoder, config.pixel_width)
    initialise(decoder)
    return MaskDecoder(prompt_encoder, decoder, image_update=config.image_update)


def _widen(decoder: SamMaskDecoder, width: int) -> None:
    """Set the channels of both upscaling steps and of the pixel classifiers to `width`."""
    decoder.output_upscaling = nn.Sequential(
        nn.ConvTranspose2d(decoder.transformer_dim, width, kernel_size=2, stride=2),
        LayerNorm2d(width),
        nn.GELU(),
        nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
        nn.GELU(),
    )
    decoder.output_hypernetworks_mlps = nn.ModuleList(
        MLP(decoder.transformer_dim, decoder.transformer_dim, width, 3) for _ in decoder.output_hypernetworks_mlps
    )


def initialise(decoder: SamMaskDecoder) -> None:
    """Initialise the decoder so that a mask is a dot product of prompt and image; training adds attention.

    With torch's defaults the mask token hardly depends on the prompt, which matters when training on few images. The
    first self-attention, which has no residual connection, starts as the mean of the tokens. Every residual branch
    starts at zero. All other layers preserve the variance of their input.
    """
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=(2 / module.in_channels) ** 0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for token in (decoder.iou_token, decoder.mask_tokens):
        nn.init.normal_(token.weight, std=0.1)
    transformer = decoder.transformer
    residual_ends = [transformer.final_attn_token_to_image.out_proj]
    for block in transformer.layers:
        residual_ends += [block.mlp.lin2, block.cross_attn_token_to_image.out_proj]
        residual_ends += [block.cross_attn_image_to_token.out_proj]
        if block.skip_first_layer_pe:
            for identity in (block.self_attn.v_proj, block.self_attn.out_proj):
                nn.init.eye_(identity.weight)
        else:
            residual_ends.append(block.self_attn.out_proj)
    for layer in residual_ends:
        nn.init.zeros_(layer.weight)
