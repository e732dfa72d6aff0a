"""SAM's prompt encoder and mask decoder, for several images with several prompts each in one call.

Source: Segment Anything, https://arxiv.org/abs/2304.02643; segment-anything 1.0, `MaskDecoder.predict_masks`.
Differs from upstream: upstream repeats one image for all prompts (`repeat_interleave` by the number of prompts), so
several images with several prompts raise a shape error; here each prompt has the index of its image. High-resolution
features, if any, are added in the two upscaling steps, as in SAM 2 (https://arxiv.org/abs/2408.00714, section 4).
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
"""Side of a mask over side of the image embedding."""

POINTS_PER_CHUNK = 4
"""Points whose masks are computed at once, so few that the upscaled images stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """Image features for the mask decoder.

    Args:
        coarse: (B, P, g, g).
        details: features at 2g and 4g, in SAM (B, P/4, 2g, 2g) and (B, P/8, 4g, 4g); None for SAM's own embedding.
    """

    coarse: Tensor
    details: tuple[Tensor, Tensor] | None = None


class PatchEmbedding(nn.Module):
    """Image embedding for a mask decoder from scratch, from the vision encoder's patches and a shallow RGB stem.

    A linear layer and a layer norm replace SAM's neck, because patches already contain context. The stem adds the
    resolution that small objects and edges require.
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
        # Twice the side of the masks, which a convolution of stride 2 halves.
        size = (2 * UPSCALE * height, 2 * UPSCALE * width)
        fine = self.stem_fine(F.interpolate(frames, size, mode="bilinear", antialias=True) - 0.5)
        return ImageEmbedding(coarse, (self.stem_middle(fine), fine))


class SamEmbedding(nn.Module):
    """Image embedding for the mask decoder of a SAM: the frozen SAM's own, from the cache."""

    def forward(self, patches: Tensor, mask_inputs: Tensor) -> ImageEmbedding:  # noqa: ARG002 - as PatchEmbedding
        """SAM's embeddings (B, P, g, g) -> the same."""
        return ImageEmbedding(mask_inputs)


@dataclass(frozen=True, slots=True)
class PointMasks:
    """K masks predicted from point prompts.

    Args:
        logits: (K, 4g, 4g) over the padded frame.
        prompt: (K,) index of the point.
        level: (K,) which of SAM's three masks: 0 subpart, 1 part, 2 whole.
        predicted_iou: (K,) SAM's estimate of the mask's IoU.
    """

    logits: Tensor
    prompt: Tensor
    level: Tensor
    predicted_iou: Tensor


class MaskDecoder(nn.Module):
    """SAM's prompt encoder (frozen) and mask decoder (trained), prompted with [SEG] states.

    Args:
        prompt_encoder: provides the positional encoding and the "no mask" embedding.
        sam_decoder: a decoder of the same width.
        image_update: whether the image attends to the prompt, as in SAM. Without it, all expressions of an image share
            one upscaled image, and its cost does not grow with their number.
    """

    learns: ClassVar[bool] = True
    """Whether a loss on masks trains the decoder and its prompts; if not, training decodes no masks."""

    def __init__(
        self, prompt_encoder: PromptEncoder, sam_decoder: SamMaskDecoder, *, image_update: bool = True
    ) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder.requires_grad_(False)
        self.sam_decoder = sam_decoder
        self.image_update = image_update
        # Parts that never run are frozen: there is one mask per prompt, so no ranking of several.
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
    def location_grid(self) -> tuple[int, int]:
        """(g, g), cells of the location logits and of the image embedding."""
        return self.prompt_encoder.image_embedding_size

    @property
    def detail_widths(self) -> tuple[int, int]:
        """Channels of the features at 2g and at 4g, in SAM P/4 and P/8."""
        first, _, _, second, _ = self.sam_decoder.output_upscaling
        return first.out_channels, second.out_channels

    def positional_encoding(self, side: int) -> Tensor:
        """The decoder's dense positional encoding on a grid of side x side cells, (P, side, side)."""
        return self.prompt_encoder.pe_layer((side, side))

    def location_logits(self, prompts: Tensor) -> Tensor:
        """Prompts (M, P) -> similarity to the positional encoding of each cell, (M, g, g) logits.

        The embedding of a point has its maximum, the square root of P, at the point's location, and is about zero far
        from it.
        """
        coordinates = self.prompt_encoder.get_dense_pe()[0].float()
        return einsum(prompts.float(), coordinates, "m p, p h w -> m h w") * 2 * self.width**-0.5

    def forward(self, embedding: ImageEmbedding, prompts: Tensor, image: Tensor) -> Tensor:
        """Predict one mask per prompt.

        Args:
            embedding: of B images.
            prompts: (M, P), one prompt embedding per expression.
            image: (M,) int64, index of each prompt's image.

        Returns:
            (M, 4g, 4g) mask logits over the padded frame.
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
        """Masks of single points, three per point (subpart, part, whole), without those of low predicted IoU.

        Args:
            embedding: of B images.
            points: (M, 2) x and y in pixels of the frame.
            image: (M,) int64, index of each point's image.
            min_iou: masks with a predicted IoU of at most this are not computed.
        """
        predicted_iou, states, keys = self._prompt_with_points(embedding, points, image)
        is_wanted = predicted_iou > min_iou
        selected = is_wanted.any(dim=1).nonzero().squeeze(1)
        logits = []
        for chunk in selected.split(POINTS_PER_CHUNK):
            pixels = self._upscale(keys[chunk], embedding.details, image[chunk])
            masks = einsum(self._kernels(states[chunk]), pixels, "m level c, m n ij kl c -> m level n ij kl")
            logits.append(_to_image(masks[is_wanted[chunk]], embedding.coarse.shape[-2]))
        prompt, level = is_wanted.nonzero(as_tuple=True)
        return PointMasks(torch.cat(logits), prompt, level, predicted_iou[is_wanted])

    def best_at_points(self, embedding: ImageEmbedding, points: Tensor, image: Tensor) -> Tensor:
        """The mask of highest predicted IoU of the three of each point, (M, 4g, 4g) logits.

        Args are those of `at_points`.
        """
        predicted_iou, states, keys = self._prompt_with_points(embedding, points, image)
        kernel = self._kernels(states)[torch.arange(len(points), device=points.device), predicted_iou.argmax(1)]
        pixels = self._upscale(keys, embedding.details, image)
        return _to_image(einsum(kernel, pixels, "m c, m n ij kl c -> m n ij kl"), embedding.coarse.shape[-2])

    def _prompt_with_points(
        self, embedding: ImageEmbedding, points: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Single points -> predicted IoU (M, 3), mask tokens (M, 3, P), and each point's image features (M, N, P)."""
        assert self.image_update, "point prompts require image_update"
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        prompts, _ = self.prompt_encoder(points=(points.unsqueeze(1), labels), boxes=None, masks=None)
        states, keys = self._two_way(embedding, prompts, Grouping.of(image, len(embedding.coarse)))
        # The first mask token is for unambiguous prompts; a single point is ambiguous.
        return self.sam_decoder.iou_prediction_head(states[:, 0])[:, 1:], states[:, 2:], keys

    def _kernels(self, states: Tensor) -> Tensor:
        """Pixel classifiers of the three mask tokens (M, 3, P), (M, 3, pixel width)."""
        networks = self.sam_decoder.output_hypernetworks_mlps[1:]
        return torch.stack([network(states[:, level]) for level, network in enumerate(networks)], dim=1)

    def _two_way(self, embedding: ImageEmbedding, prompts: Tensor, group: Grouping) -> tuple[Tensor, Tensor]:
        """Prompts (M, K, P) -> IoU and mask tokens (M, 1 + masks, P), and the updated image features."""
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
            num_outputs=len(output_tokens),
        )

    def _upscale(self, keys: Tensor, details: tuple[Tensor, Tensor] | None, image: Tensor | None) -> Tensor:
        """(X, N, P) -> (X, N, 4, 4, pixel width): 2 x 2 cells per position, and 2 x 2 pixels per cell.

        A transposed convolution whose kernel size equals its stride is a linear map of each position, so the two can be
        applied without arranging positions as an image between them. `image` (X,) selects the details of each row.
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
