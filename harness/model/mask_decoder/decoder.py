"""SAM's prompt encoder and mask decoder, for several images with several prompts each in one call.

Source: Segment Anything, https://arxiv.org/abs/2304.02643; segment-anything 1.0, `MaskDecoder.predict_masks`.
Differs from upstream: upstream repeats one image for all prompts (`repeat_interleave` by the number of prompts), so
several images with several prompts raise a shape error; here each prompt has the index of its image. High-resolution
features, if any, are added in the two upscaling steps, as in SAM 2 (https://arxiv.org/abs/2408.00714, section 4).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from harness.model.mask_decoder.two_way import Decoded, Grouping, GroupSizes, two_way

UPSCALE = 4
"""Side of a mask over side of the image embedding."""

CPU_SIZES = GroupSizes(tokens=16, images=4)
"""Numbers of prompts at once on a CPU; other devices process all prompts at once."""

MASK_TOKEN = (1,)
"""The output token for an unambiguous prompt; it follows the token of predicted IoU."""

POINT_TOKENS = (0, 2, 3, 4)
"""The output tokens for an ambiguous prompt, such as a single point: predicted IoU, subpart, part, whole."""


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
        masks = []
        for decoded in self._two_way(embedding, prompts.unsqueeze(1), image, MASK_TOKEN):
            kernels = self.sam_decoder.output_hypernetworks_mlps[0](decoded.states)
            if self.image_update:
                masks.append(self._classify(decoded.images, kernels, embedding.details, image[decoded.prompts])[:, 0])
            else:
                group = Grouping.of(image, len(embedding.coarse))
                pixels = self._upscale(decoded.images[0], embedding.details, None)
                masks.append(group.by_prompt(_classify(group.by_image(kernels[:, 0]), pixels)))
        return _to_image(torch.cat(masks), embedding.coarse.shape[-2])

    def at_points(self, embedding: ImageEmbedding, points: Tensor, image: Tensor, min_iou: float) -> PointMasks:
        """Masks of single points, three per point (subpart, part, whole), without those of low predicted IoU.

        Args:
            embedding: of B images.
            points: (M, 2) x and y in pixels of the frame.
            image: (M,) int64, index of each point's image.
            min_iou: masks with a predicted IoU of at most this are not computed.
        """
        logits, predicted_iou = [], []
        for decoded in self._two_way(embedding, self._point_prompts(points), image, POINT_TOKENS):
            iou = self._predicted_iou(decoded.states)
            is_wanted = iou > min_iou
            selected = is_wanted.any(dim=1)
            groups = zip(decoded.images, selected.split([len(one) for one in decoded.images]), strict=True)
            images = [one[own] for one, own in groups if own.any()] or [decoded.images[0][:0]]
            kernels = self._kernels(decoded.states[selected])
            masks = self._classify(images, kernels, embedding.details, image[decoded.prompts][selected])
            logits.append(_to_image(masks[is_wanted[selected]], embedding.coarse.shape[-2]))
            predicted_iou.append(iou)
        scores = torch.cat(predicted_iou)
        prompt, level = (scores > min_iou).nonzero(as_tuple=True)
        return PointMasks(torch.cat(logits), prompt, level, scores[prompt, level])

    def best_at_points(self, embedding: ImageEmbedding, points: Tensor, image: Tensor) -> Tensor:
        """The mask of highest predicted IoU of the three of each point, (M, 4g, 4g) logits.

        Args are those of `at_points`.
        """
        logits = []
        for decoded in self._two_way(embedding, self._point_prompts(points), image, POINT_TOKENS):
            best = self._predicted_iou(decoded.states).argmax(1)
            kernels = self._kernels(decoded.states)[torch.arange(len(best), device=best.device), best]
            logits.append(
                self._classify(decoded.images, kernels.unsqueeze(1), embedding.details, image[decoded.prompts])[:, 0]
            )
        return _to_image(torch.cat(logits), embedding.coarse.shape[-2])

    def _point_prompts(self, points: Tensor) -> Tensor:
        """Single points (M, 2) -> prompt tokens (M, 2, P)."""
        assert self.image_update, "point prompts require image_update"
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        prompts, _ = self.prompt_encoder(points=(points.unsqueeze(1), labels), boxes=None, masks=None)
        return prompts

    def _predicted_iou(self, states: Tensor) -> Tensor:
        """`POINT_TOKENS` (M, 4, P) -> predicted IoU (M, 3) of subpart, part and whole."""
        return self.sam_decoder.iou_prediction_head(states[:, 0])[:, 1:]

    def _kernels(self, states: Tensor) -> Tensor:
        """`POINT_TOKENS` (M, 4, P) -> pixel classifiers of subpart, part and whole (M, 3, pixel width)."""
        networks = self.sam_decoder.output_hypernetworks_mlps[1:]
        return torch.stack([network(states[:, level]) for level, network in enumerate(networks, start=1)], dim=1)

    def _two_way(
        self, embedding: ImageEmbedding, prompts: Tensor, image: Tensor, outputs: Sequence[int]
    ) -> Iterator[Decoded]:
        """Prompts (M, K, P), each for the image (M,) of B -> output tokens, and the image as each prompt updates it."""
        decoder = self.sam_decoder
        keys = rearrange(embedding.coarse, "b p h w -> b (h w) p") + self.prompt_encoder.no_mask_embed.weight
        position = rearrange(self.prompt_encoder.get_dense_pe(), "1 p h w -> 1 (h w) p").to(keys.dtype)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        return two_way(
            decoder.transformer,
            keys,
            position,
            torch.cat([output_tokens.expand(len(prompts), -1, -1), prompts], dim=1),
            Grouping.of(image, len(keys)),
            image_update=self.image_update,
            outputs=outputs,
            sizes=CPU_SIZES if keys.device.type == "cpu" else GroupSizes(*[max(1, len(prompts))] * 2),
        )

    def _classify(
        self, images: list[Tensor], kernels: Tensor, details: tuple[Tensor, Tensor] | None, image: Tensor
    ) -> Tensor:
        """Mask logits (M, E, N, 4, 4) of E pixel classifiers (M, E, pixel width) per prompt.

        Args:
            images: the image as updated by each prompt, (m, N, P) each.
            image: (M,) index of each prompt's details.
        """
        sizes = [len(one) for one in images]
        rows = zip(images, kernels.split(sizes), image.split(sizes), strict=True)
        return torch.cat([_classify(own, self._upscale(one, details, index)) for one, own, index in rows])

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
        # On a CPU, a norm over few channels is about three times as fast in float32 as in bfloat16.
        cells = activate(F.layer_norm(cells.to(norm.weight.dtype), cells.shape[-1:], norm.weight, norm.bias, norm.eps))
        pixels = _spread(second, cells)
        if details is not None:
            blocks = rearrange(details[1], "b c (h i k) (w j l) -> b (h w) (i j) (k l) c", i=2, j=2, k=2, l=2)
            pixels = pixels + (blocks if image is None else blocks.index_select(0, image))
        return activate_last(pixels)


def _classify(kernels: Tensor, pixels: Tensor) -> Tensor:
    """Pixel classifiers (X, E, c) and upscaled images (X, N, 4, 4, c) -> mask logits (X, E, N, 4, 4)."""
    logits = kernels @ rearrange(pixels, "x n ij kl c -> x c (n ij kl)")
    return rearrange(logits, "x e (n ij kl) -> x e n ij kl", ij=4, kl=4)


def _to_image(masks: Tensor, height: int) -> Tensor:
    """(M, N, 4, 4) as `_upscale` orders pixels -> (M, 4g, 4g)."""
    return rearrange(masks, "m (h w) (i j) (k l) -> m (h i k) (w j l)", h=height, i=2, k=2)


def _spread(convolution: nn.Module, values: Tensor) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 as a linear map: (..., C) -> (..., 4, C')."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    weight = rearrange(convolution.weight, "c o i j -> (i j o) c")
    return rearrange(F.linear(values, weight, convolution.bias.repeat(4)), "... (ij o) -> ... ij o", ij=4)
