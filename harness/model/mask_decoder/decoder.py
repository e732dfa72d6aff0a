"""The mask decoder: SAM's prompt encoder and mask decoder, for many images and many expressions in one call.

Source: Segment Anything, https://arxiv.org/abs/2304.02643; segment-anything 1.0, `MaskDecoder.predict_masks`.
Differs from upstream: upstream repeats one image for all prompts (`repeat_interleave` by the number of prompts), so
several images with several prompts raise a shape error; here each prompt names its image. High-resolution features,
where given, are added between the two upscaling steps, as in SAM 2 (https://arxiv.org/abs/2408.00714, section 4).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from harness.model.config import MaskDecoderConfig
from harness.model.mask_decoder.two_way import Grouping, two_way

UPSCALE = 4
"""How much finer the decoder's masks are than its image embedding."""

POINTS_DRAWN_AT_ONCE = 4
"""The pixels of so few points stay in a processor's cache from the first step of upscaling to the mask."""


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """What the mask decoder looks at.

    Args:
        coarse: (B, P, g, g).
        details: features at 2g and 4g, in SAM (B, P/4, 2g, 2g) and (B, P/8, 4g, 4g); None for SAM's own embedding.
    """

    coarse: Tensor
    details: tuple[Tensor, Tensor] | None = None


class PatchEmbedding(nn.Module):
    """Where there is no SAM encoder: an image embedding from the vision encoder's patches and a shallow RGB stem.

    Patches already know their surroundings, so a linear map and a layer norm stand in for SAM's neck; the stem gives
    small objects their edges.
    """

    def __init__(self, vision_width: int, mask_decoder: "MaskDecoder", grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        middle, fine = mask_decoder.detail_widths
        self.neck = nn.Sequential(nn.Linear(vision_width, mask_decoder.width), nn.LayerNorm(mask_decoder.width))
        self.stem_fine = nn.Conv2d(3, fine, 5, stride=2, padding=2)
        self.stem_middle = nn.Sequential(nn.GELU(), nn.Conv2d(fine, middle, 2, stride=2))

    def forward(self, patches: Tensor, frames: Tensor) -> ImageEmbedding:
        """patches (B, N, C), frames (B, 3, R, R) in 0..1 -> embedding of side g = grid."""
        height, width = self.grid
        coarse = rearrange(self.neck(patches), "b (h w) p -> b p h w", h=height)
        # Twice the side of the masks, so that a convolution of stride 2 lands on them.
        size = (2 * UPSCALE * height, 2 * UPSCALE * width)
        fine = self.stem_fine(F.interpolate(frames, size, mode="bilinear", antialias=True) - 0.5)
        return ImageEmbedding(coarse, (self.stem_middle(fine), fine))


class SamEmbedding(nn.Module):
    """Where there is a SAM: its own image embedding, which comes frozen from the cache."""

    def forward(self, patches: Tensor, mask_inputs: Tensor) -> ImageEmbedding:  # noqa: ARG002 - what any embedding is given
        """view (B, P, g, g) -> the same."""
        return ImageEmbedding(mask_inputs)


@dataclass(frozen=True, slots=True)
class PointMasks:
    """K masks that points were answered with.

    Args:
        logits: (K, 4g, 4g) of the padded frame.
        prompt: (K,) the number of the point.
        level: (K,) which of SAM's three answers: 0 subpart, 1 part, 2 whole.
        predicted_iou: (K,) how good SAM thinks it is.
    """

    logits: Tensor
    prompt: Tensor
    level: Tensor
    predicted_iou: Tensor


class MaskDecoder(nn.Module):
    """SAM's prompt encoder (frozen) and mask decoder (trained), prompted with [SEG] states.

    Args:
        prompt_encoder: gives the positional encoding and the "no mask" embedding.
        mask_decoder: a decoder of the same width.
        image_update: whether the image looks back at the prompt, as in SAM. Without it one upscaled image serves all
            its expressions, and the decoder's cost no longer grows with their number.
    """

    learns: ClassVar[bool] = True
    """Whether its masks teach it, and what prompts it; none are drawn in training where they do not."""

    def __init__(
        self, prompt_encoder: PromptEncoder, sam_decoder: SamMaskDecoder, *, image_update: bool = True
    ) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder.requires_grad_(False)
        self.sam_decoder = sam_decoder
        self.image_update = image_update
        # What never runs does not learn: one mask a prompt is asked for, so nothing ranks several.
        sam_decoder.iou_prediction_head.requires_grad_(False)
        sam_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)
        if not image_update:
            for block in sam_decoder.transformer.layers:
                block.cross_attn_image_to_token.requires_grad_(False)
                block.norm4.requires_grad_(False)

    @property
    def width(self) -> int:
        """P."""
        return self.sam_decoder.transformer_dim

    @property
    def detail_widths(self) -> tuple[int, int]:
        """How many numbers a cell of 2g and a pixel of 4g have, in SAM P/4 and P/8."""
        first, _, _, second, _ = self.sam_decoder.output_upscaling
        return first.out_channels, second.out_channels

    def positional_encoding(self, side: int) -> Tensor:
        """(P, side, side): the coordinates in which the decoder thinks, on a grid of that many cells a side."""
        return self.prompt_encoder.pe_layer((side, side))

    def location_logits(self, prompts: Tensor) -> Tensor:
        """Prompts (M, P) -> how well each agrees with the decoder's coordinates, (M, g, g) logits.

        The embedding of a point agrees best with where the point lies: there its logit is the root of P, and about zero
        far away.
        """
        coordinates = self.prompt_encoder.get_dense_pe()[0].float()
        return einsum(prompts.float(), coordinates, "m p, p h w -> m h w") * 2 * self.width**-0.5

    def forward(self, embedding: ImageEmbedding, prompts: Tensor, image: Tensor) -> Tensor:
        """One mask a prompt.

        Args:
            embedding: of B images.
            prompts: (M, P), one prompt embedding an expression.
            image: (M,) int64, which image each prompt belongs to.

        Returns:
            (M, 4g, 4g) mask logits of the padded frame.
        """
        group = Grouping.of(image, len(embedding.coarse))
        states, keys = self._two_way(embedding, prompts.unsqueeze(1), group)
        kernel = self.sam_decoder.output_hypernetworks_mlps[0](states[:, 1])
        if self.image_update:
            pixels = self._upscale(keys, embedding.details, group.image)
            masks = einsum(kernel, pixels, "m c, m n ij kl c -> m n ij kl")
        else:
            pixels = self._upscale(keys, embedding.details, None)
            masks = group.by_prompt(einsum(group.by_image(kernel), pixels, "b e c, b n ij kl c -> b e n ij kl"))
        return _to_image(masks, embedding.coarse.shape[-2])

    def at_points(self, embedding: ImageEmbedding, points: Tensor, image: Tensor, min_iou: float) -> PointMasks:
        """SAM's answer to single points: subpart, part and whole, of which only those worth their pixels are drawn.

        Args:
            embedding: of B images.
            points: (M, 2) x and y in pixels of the frame.
            image: (M,) int64, which image each point lies in.
            min_iou: masks with a predicted IoU of no more than this are left out.
        """
        predicted_iou, states, keys = self._asked(embedding, points, image)
        is_wanted = predicted_iou > min_iou
        drawn = is_wanted.any(dim=1).nonzero().squeeze(1)
        logits = []
        for some in drawn.split(POINTS_DRAWN_AT_ONCE):
            pixels = self._upscale(keys[some], embedding.details, image[some])
            masks = einsum(self._kernels(states[some]), pixels, "m level c, m n ij kl c -> m level n ij kl")
            logits.append(_to_image(masks[is_wanted[some]], embedding.coarse.shape[-2]))
        prompt, level = is_wanted.nonzero(as_tuple=True)
        return PointMasks(torch.cat(logits), prompt, level, predicted_iou[is_wanted])

    def best_at_points(self, embedding: ImageEmbedding, points: Tensor, image: Tensor) -> Tensor:
        """Of SAM's three answers to each of these points the one it thinks best, (M, 4g, 4g) logits.

        Args: as in `at_points`.
        """
        predicted_iou, states, keys = self._asked(embedding, points, image)
        kernel = self._kernels(states)[torch.arange(len(points), device=points.device), predicted_iou.argmax(1)]
        pixels = self._upscale(keys, embedding.details, image)
        return _to_image(einsum(kernel, pixels, "m c, m n ij kl c -> m n ij kl"), embedding.coarse.shape[-2])

    def _asked(self, embedding: ImageEmbedding, points: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Single points -> predicted IoU (M, 3), mask states (M, 3, P), and the image as each point sees it."""
        assert self.image_update, "a point's masks are SAM's own, whose image looks back at the point"
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        prompts, _ = self.prompt_encoder(points=(points.unsqueeze(1), labels), boxes=None, masks=None)
        states, keys = self._two_way(embedding, prompts, Grouping.of(image, len(embedding.coarse)))
        # The first mask token is for prompts that leave no doubt what is meant; a point leaves some.
        return self.sam_decoder.iou_prediction_head(states[:, 0])[:, 1:], states[:, 2:], keys

    def _kernels(self, states: Tensor) -> Tensor:
        """What each of the three mask states (M, 3, P) looks for in a pixel."""
        networks = self.sam_decoder.output_hypernetworks_mlps[1:]
        return torch.stack([network(states[:, level]) for level, network in enumerate(networks)], dim=1)

    def _two_way(self, embedding: ImageEmbedding, prompts: Tensor, group: Grouping) -> tuple[Tensor, Tensor]:
        """The answers (M, 1 + masks, P) to prompts (M, K, P), IoU first, and the image as each prompt sees it."""
        decoder = self.sam_decoder
        keys = rearrange(embedding.coarse, "b p h w -> b (h w) p") + self.prompt_encoder.no_mask_embed.weight
        position = rearrange(self.prompt_encoder.get_dense_pe(), "1 p h w -> 1 (h w) p").to(keys.dtype)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), prompts], dim=1)
        return two_way(
            decoder.transformer,
            keys,
            position,
            tokens,
            group,
            image_update=self.image_update,
            num_read=len(output_tokens),
        )

    def _upscale(self, keys: Tensor, details: tuple[Tensor, Tensor] | None, image: Tensor | None) -> Tensor:
        """(X, N, P) -> (X, N, 4, 4, P/8 or the pixel width): a patch's 2 x 2 cells, and of each its 2 x 2 pixels.

        A transposed convolution whose kernel is its stride is a linear map of each position, so nothing needs to be
        put back into an image between the two of them. `image` says whose details each row of `keys` takes.
        """
        first, norm, activate, second, activate_last = self.sam_decoder.output_upscaling
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


def _to_image(masks: Tensor, height: int) -> Tensor:
    """(M, N, 4, 4) as `_upscale` orders pixels -> (M, 4g, 4g)."""
    return rearrange(masks, "m (h w) (i j) (k l) -> m (h i k) (w j l)", h=height, i=2, k=2)


def _spread(convolution: nn.Module, values: Tensor) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 as a linear map: (..., C) -> (..., 4, C')."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    weight = rearrange(convolution.weight, "c o i j -> (i j o) c")
    return rearrange(F.linear(values, weight, convolution.bias.repeat(4)), "... (ij o) -> ... ij o", ij=4)


def build_mask_decoder(config: MaskDecoderConfig, grid: tuple[int, int], frame: int) -> MaskDecoder:
    """A mask decoder from scratch, of segment-anything's own classes, with SAM's sizes where none are given."""
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
    """Pixels of `width` numbers from the first step of upscaling on, and kernels to match."""
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
