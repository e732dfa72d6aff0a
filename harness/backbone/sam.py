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
        height, width = embedding.coarse.shape[-2:]
        keys = rearrange(embedding.coarse, "b p h w -> b (h w) p") + self.prompt_encoder.no_mask_embed.weight
        position = rearrange(self.prompt_encoder.get_dense_pe(), "1 p h w -> 1 (h w) p").to(keys.dtype)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), prompts.unsqueeze(1)], dim=1)
        states, keys = two_way(decoder.transformer, keys, position, tokens, image)
        kernel = decoder.output_hypernetworks_mlps[0](states[:, 1])
        pixels = self._upscale(keys, embedding.details, image)
        masks = einsum(kernel, pixels, "m c, m n ij kl c -> m n ij kl")
        return rearrange(masks, "m (h w) (i j) (k l) -> m (h i k) (w j l)", h=height, w=width, i=2, k=2)

    def _upscale(self, keys: Tensor, details: tuple[Tensor, Tensor] | None, image: Tensor) -> Tensor:
        """(M, N, P) -> (M, N, 4, 4, P/8): a patch's 2 x 2 cells, and of each its 2 x 2 pixels.

        A transposed convolution whose kernel is its stride is a linear map of each position, so nothing needs to be
        put back into an image between the two of them.
        """
        first, norm, activate, second, activate_last = self.mask_decoder.output_upscaling
        cells = _spread(first, keys)
        if details is not None:
            blocks = rearrange(details[0], "b c (h i) (w j) -> b (h w) (i j) c", i=2, j=2)
            cells = cells + blocks.index_select(0, image)
        cells = activate(F.layer_norm(cells, cells.shape[-1:], norm.weight, norm.bias, norm.eps))
        pixels = _spread(second, cells)
        if details is not None:
            blocks = rearrange(details[1], "b c (h i k) (w j l) -> b (h w) (i j) (k l) c", i=2, j=2, k=2, l=2)
            pixels = pixels + blocks.index_select(0, image)
        return activate_last(pixels)


def _spread(convolution: nn.Module, values: Tensor) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 as a linear map: (..., C) -> (..., 4, C')."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    weight = rearrange(convolution.weight, "c o i j -> (i j o) c")
    return rearrange(F.linear(values, weight), "... (ij o) -> ... ij o", ij=4) + convolution.bias


def two_way(
    transformer: TwoWayTransformer, keys: Tensor, position: Tensor, tokens: Tensor, image: Tensor
) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer.forward` for prompts that share images: each image is projected once for its first block.

    Args:
        keys: (B, N, P) image embedding.
        position: (1, N, P).
        tokens: (M, K, P) output tokens and prompt.
        image: (M,) which image a prompt belongs to.

    Returns:
        The tokens (M, K, P) and the image as each prompt sees it (M, N, P).
    """
    queries = tokens
    owner: Tensor | None = image  # whose row of `keys` a prompt looks at; after the first block, its own
    for block in transformer.layers:
        if block.skip_first_layer_pe:
            queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
        else:
            with_position = queries + tokens
            queries = block.norm1(queries + block.self_attn(q=with_position, k=with_position, v=queries))
        queries = block.norm2(
            queries + _to_image(block.cross_attn_token_to_image, queries + tokens, keys, position, owner)
        )
        queries = block.norm3(queries + block.mlp(queries))
        back = block.cross_attn_image_to_token
        looking = _own(back.q_proj(keys + position), owner)
        seen = _attend(back, looking, back.k_proj(queries + tokens), back.v_proj(queries))
        keys, owner = block.norm4(_own(keys, owner) + seen), None
    final = _to_image(transformer.final_attn_token_to_image, queries + tokens, keys, position, owner)
    return transformer.norm_final_attn(queries + final), keys


def _own(values: Tensor, owner: Tensor | None) -> Tensor:
    """One row a prompt, of values that may still be one row an image."""
    return values if owner is None else values.index_select(0, owner)


def _to_image(attention: nn.Module, queries: Tensor, keys: Tensor, position: Tensor, owner: Tensor | None) -> Tensor:
    """Tokens (M, K, P) look at the image."""
    k, v = attention.k_proj(keys + position), attention.v_proj(keys)
    return _attend(attention, attention.q_proj(queries), _own(k, owner), _own(v, owner))


def _attend(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Upstream's `Attention` after its input projections."""
    q, k, v = (rearrange(x, "m n (heads d) -> m heads n d", heads=attention.num_heads) for x in (q, k, v))
    weights = (einsum(q, k, "m h q d, m h k d -> m h q k") / q.shape[-1] ** 0.5).softmax(-1)
    mixed = einsum(weights, v, "m h q k, m h k d -> m h q d")
    return attention.out_proj(rearrange(mixed, "m heads n d -> m n (heads d)"))


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
