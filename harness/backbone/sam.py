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
from segment_anything.modeling.transformer import Attention
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

    Patches already know their surroundings, so a linear map and a layer norm stand in for SAM's neck; the stem gives
    small objects their edges.
    """

    def __init__(self, vision_width: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.neck = nn.Sequential(nn.Linear(vision_width, width), nn.LayerNorm(width))
        self.stem_fine = nn.Conv2d(3, width // 8, 5, stride=2, padding=2)
        self.stem_middle = nn.Sequential(nn.GELU(), nn.Conv2d(width // 8, width // 4, 3, stride=2, padding=1))

    def forward(self, patches: Tensor, frames: Tensor) -> ImageEmbedding:
        """patches (B, N, C), frames (B, 3, R, R) in 0..1 -> embedding of side g = grid."""
        height, width = self.grid
        coarse = rearrange(self.neck(patches), "b (h w) p -> b p h w", h=height)
        # Twice the side of the masks, so that a convolution of stride 2 lands on them.
        size = (2 * UPSCALE * height, 2 * UPSCALE * width)
        fine = self.stem_fine(F.interpolate(frames, size, mode="bilinear", antialias=True) - 0.5)
        return ImageEmbedding(coarse, (self.stem_middle(fine), fine))


@dataclass(frozen=True, slots=True)
class Grouping:
    """M prompts of B images, each at a slot of its image, so that attention to an image need not copy the image.

    Args:
        image: (M,) which image a prompt belongs to.
        slot: (M,) its number among the prompts of that image.
        shape: (B, slots of the image with the most prompts).
    """

    image: Tensor
    slot: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, image: Tensor, num_images: int) -> "Grouping":
        """From the image of each prompt, in any order."""
        membership = F.one_hot(image, num_images)
        slot = (membership.cumsum(0) - 1).gather(1, image.unsqueeze(1)).squeeze(1)
        return cls(image, slot, (num_images, int(membership.sum(0).max())))

    def by_image(self, values: Tensor) -> Tensor:
        """(M, ...) -> (B, E, ...), zeros where an image has fewer prompts."""
        grouped = values.new_zeros(*self.shape, *values.shape[1:])
        return grouped.index_put((self.image, self.slot), values)

    def by_prompt(self, values: Tensor) -> Tensor:
        """(B, E, ...) -> (M, ...)."""
        return values[self.image, self.slot]


class MaskHead(nn.Module):
    """SAM's prompt encoder (frozen) and mask decoder (trained), prompted with [SEG] states.

    Args:
        prompt_encoder: gives the positional encoding and the "no mask" embedding.
        mask_decoder: a decoder of the same width.
        image_update: whether the image looks back at the prompt, as in SAM. Without it one upscaled image serves all
            its expressions, and the decoder's cost no longer grows with their number.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, *, image_update: bool = True) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder.requires_grad_(False)
        self.mask_decoder = mask_decoder
        self.image_update = image_update
        # What never runs does not learn: one mask a prompt is asked for, so nothing ranks several.
        mask_decoder.iou_prediction_head.requires_grad_(False)
        mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)
        if not image_update:
            for block in mask_decoder.transformer.layers:
                block.cross_attn_image_to_token.requires_grad_(False)
                block.norm4.requires_grad_(False)

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
        group = Grouping.of(image, len(embedding.coarse))
        keys = rearrange(embedding.coarse, "b p h w -> b (h w) p") + self.prompt_encoder.no_mask_embed.weight
        position = rearrange(self.prompt_encoder.get_dense_pe(), "1 p h w -> 1 (h w) p").to(keys.dtype)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), prompts.unsqueeze(1)], dim=1)
        states, keys = self._two_way(keys, position, tokens, group)
        kernel = decoder.output_hypernetworks_mlps[0](states[:, 1])
        if self.image_update:
            pixels = self._upscale(keys, embedding.details, group.image)
            masks = einsum(kernel, pixels, "m c, m n ij kl c -> m n ij kl")
        else:
            pixels = self._upscale(keys, embedding.details, None)
            masks = group.by_prompt(einsum(group.by_image(kernel), pixels, "b e c, b n ij kl c -> b e n ij kl"))
        return rearrange(masks, "m (h w) (i j) (k l) -> m (h i k) (w j l)", h=height, w=width, i=2, k=2)

    def _two_way(self, keys: Tensor, position: Tensor, tokens: Tensor, group: Grouping) -> tuple[Tensor, Tensor]:
        """`TwoWayTransformer.forward` for prompts that share images; an image is projected once for its first block.

        Args:
            keys: (B, N, P) image embedding.
            position: (1, N, P).
            tokens: (M, K, P) output tokens and prompt.

        Returns:
            The tokens (M, K, P), and the image: (M, N, P) as each prompt sees it, or (B, N, P) as it was.
        """
        transformer = self.mask_decoder.transformer
        queries = tokens
        shared: Grouping | None = group  # None once every prompt has an image of its own
        for block in transformer.layers:
            if block.skip_first_layer_pe:
                queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
            else:
                with_position = queries + tokens
                queries = block.norm1(queries + block.self_attn(q=with_position, k=with_position, v=queries))
            looked = _look(block.cross_attn_token_to_image, queries + tokens, keys, position, shared)
            queries = block.norm2(queries + looked)
            queries = block.norm3(queries + block.mlp(queries))
            if self.image_update:
                back = block.cross_attn_image_to_token
                looking = back.q_proj(keys + position)
                if shared is not None:
                    looking, keys = looking.index_select(0, group.image), keys.index_select(0, group.image)
                keys = block.norm4(keys + _attend(back, looking, back.k_proj(queries + tokens), back.v_proj(queries)))
                shared = None
        final = _look(transformer.final_attn_token_to_image, queries + tokens, keys, position, shared)
        return transformer.norm_final_attn(queries + final), keys

    def _upscale(self, keys: Tensor, details: tuple[Tensor, Tensor] | None, image: Tensor | None) -> Tensor:
        """(X, N, P) -> (X, N, 4, 4, P/8): a patch's 2 x 2 cells, and of each its 2 x 2 pixels.

        A transposed convolution whose kernel is its stride is a linear map of each position, so nothing needs to be
        put back into an image between the two of them. `image` says whose details each row of `keys` takes.
        """
        first, norm, activate, second, activate_last = self.mask_decoder.output_upscaling
        cells = _spread(first, keys)
        if details is not None:
            blocks = rearrange(details[0], "b c (h i) (w j) -> b (h w) (i j) c", i=2, j=2)
            cells = cells + (blocks if image is None else blocks.index_select(0, image))
        cells = activate(F.layer_norm(cells, cells.shape[-1:], norm.weight, norm.bias, norm.eps))
        pixels = _spread(second, cells)
        if details is not None:
            blocks = rearrange(details[1], "b c (h i k) (w j l) -> b (h w) (i j) (k l) c", i=2, j=2, k=2, l=2)
            pixels = pixels + (blocks if image is None else blocks.index_select(0, image))
        return activate_last(pixels)


def _spread(convolution: nn.Module, values: Tensor) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 as a linear map: (..., C) -> (..., 4, C')."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    weight = rearrange(convolution.weight, "c o i j -> (i j o) c")
    return rearrange(F.linear(values, weight), "... (ij o) -> ... ij o", ij=4) + convolution.bias


def _look(attention: Attention, queries: Tensor, keys: Tensor, position: Tensor, shared: Grouping | None) -> Tensor:
    """Tokens (M, K, P) look at the image of their prompt, all tokens of an image at once while it is shared."""
    k, v = attention.k_proj(keys + position), attention.v_proj(keys)
    q = attention.q_proj(queries)
    if shared is None:
        return _attend(attention, q, k, v)
    grouped = rearrange(shared.by_image(q), "b e k d -> b (e k) d")
    seen = _attend(attention, grouped, k, v)
    return shared.by_prompt(rearrange(seen, "b (e k) p -> b e k p", k=q.shape[1]))


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Upstream's `Attention` after its input projections."""
    q, k, v = (rearrange(x, "m n (heads d) -> m heads n d", heads=attention.num_heads) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v)
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
    decoder = MaskDecoder(transformer_dim=config.width, transformer=transformer, num_multimask_outputs=0)
    initialise(decoder)
    return MaskHead(prompt_encoder, decoder, image_update=config.image_update)


def initialise(decoder: MaskDecoder) -> None:
    """Starts the decoder as a dot product of the prompt with the image; its attention is added by learning.

    With torch's defaults the mask token hardly knows its prompt, which SAM's eleven million images make up for and a
    few hundred do not. So the first self-attention, the one without a residual, begins as the mean of the tokens;
    every residual branch begins at zero; what is left keeps the variance of what passes through it.
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
