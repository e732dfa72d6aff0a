"""The mask head: SAM's prompt encoder and mask decoder, for many images and many expressions in one call.

Source: Segment Anything, https://arxiv.org/abs/2304.02643; segment-anything 1.0, `MaskDecoder.predict_masks`.
Differs from upstream: upstream repeats one image for all prompts (`repeat_interleave` by the number of prompts), so
several images with several prompts raise a shape error; here each prompt names its image. High-resolution features,
where given, are added between the two upscaling steps, as in SAM 2 (https://arxiv.org/abs/2408.00714, section 4).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from harness.backbone.config import MaskHeadConfig

UPSCALE = 4
"""How much finer the decoder's masks are than its image embedding."""


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """What the mask decoder looks at.

    Args:
        coarse: (B, P, g, g).
        details: features at 2g and 4g, (B, P/4, 2g, 2g) and (B, P/8, 4g, 4g); None for SAM's own embedding.
    """

    coarse: Tensor
    details: tuple[Tensor, Tensor] | None = None


class PatchEmbedding(nn.Module):
    """Where there is no SAM encoder: an image embedding from the vision encoder's patches and a shallow RGB stem.

    The neck is SAM's (1x1 and 3x3 convolution, each with a layer norm); the stem gives small objects their edges.
    """

    def __init__(self, vision_width: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.neck = nn.Sequential(
            nn.Conv2d(vision_width, width, 1, bias=False),
            LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )
        self.stem_fine = nn.Sequential(nn.Conv2d(3, width // 8, 5, stride=2, padding=2), LayerNorm2d(width // 8))
        self.stem_middle = nn.Sequential(
            nn.GELU(), nn.Conv2d(width // 8, width // 4, 3, stride=2, padding=1), LayerNorm2d(width // 4)
        )

    def forward(self, patches: Tensor, frames: Tensor) -> ImageEmbedding:
        """patches (B, N, C), frames (B, 3, R, R) in 0..1 -> embedding of side g = grid."""
        height, width = self.grid
        coarse = self.neck(rearrange(patches, "b (h w) c -> b c h w", h=height))
        # Twice the side of the masks, so that a convolution of stride 2 lands on them.
        size = (2 * UPSCALE * height, 2 * UPSCALE * width)
        fine = self.stem_fine(F.interpolate(frames, size, mode="bilinear", antialias=True) - 0.5)
        return ImageEmbedding(coarse, (self.stem_middle(fine), fine))


class MaskHead(nn.Module):
    """SAM's prompt encoder (frozen) and mask decoder (trained), prompted with [SEG] states.

    Args:
        prompt_encoder: gives the positional encoding and the "no mask" embedding.
        mask_decoder: a decoder of the same width.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder.requires_grad_(False)
        self.mask_decoder = mask_decoder
        # One mask a prompt is asked for, so what ranks several masks never runs.
        mask_decoder.iou_prediction_head.requires_grad_(False)
        mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)

    @property
    def width(self) -> int:
        """P."""
        return self.mask_decoder.transformer_dim

    def positional_encoding(self, side: int) -> Tensor:
        """(P, side, side): the coordinates in which the decoder thinks, on a grid of that many cells a side."""
        return self.prompt_encoder.pe_layer((side, side))

    def forward(self, embedding: ImageEmbedding, prompts: Tensor, image: Tensor) -> Tensor:
        """One mask a prompt.

        Args:
            embedding: of B images.
            prompts: (M, P), one prompt embedding an expression.
            image: (M,) int64, which image each prompt belongs to.

        Returns:
            (M, 4g, 4g) mask logits of the padded frame.
        """
        decoder = self.mask_decoder
        no_mask = rearrange(self.prompt_encoder.no_mask_embed.weight, "1 p -> 1 p 1 1")
        source = (embedding.coarse + no_mask)[image]
        position = self.prompt_encoder.get_dense_pe().to(source.dtype).expand_as(source)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), prompts.unsqueeze(1)], dim=1)
        states, source = decoder.transformer(source, position, tokens)
        kernel = decoder.output_hypernetworks_mlps[0](states[:, 1])
        source = rearrange(source, "m (h w) p -> m p h w", h=embedding.coarse.shape[-2])
        return einsum(kernel, self._upscale(source, embedding.details, image), "m c, m c h w -> m h w")

    def _upscale(self, source: Tensor, details: tuple[Tensor, Tensor] | None, image: Tensor) -> Tensor:
        """(M, P, g, g) -> (M, P/8, 4g, 4g)."""
        if details is None:
            return self.mask_decoder.output_upscaling(source)
        first, norm, activate, second, activate_last = self.mask_decoder.output_upscaling
        middle, fine = details
        source = activate(norm(first(source) + middle[image]))
        return activate_last(second(source) + fine[image])


def build_mask_head(config: MaskHeadConfig, grid: tuple[int, int], frame: int) -> MaskHead:
    """A mask head from scratch, of segment-anything's own classes."""
    prompt_encoder = PromptEncoder(
        embed_dim=config.width,
        image_embedding_size=grid,
        input_image_size=(frame, frame),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(
        depth=config.depth, embedding_dim=config.width, mlp_dim=config.mlp_width, num_heads=config.heads
    )
    return MaskHead(prompt_encoder, MaskDecoder(transformer_dim=config.width, transformer=transformer))
