"""Masks of selected visual tokens: the regions of the tokens, or a frozen SAM's masks at a point in each region."""

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from harness.model.linear.frozen_tokens import FrozenVisualTokens
from harness.model.mask_decoder.decoder import ImageEmbedding
from harness.model.mask_decoder.interior_points import interior_points
from harness.model.mask_decoder.point_prompted import PointPromptedMaskDecoder


class RegionMasks(nn.Module):
    """Draws the union of the regions of the selected tokens; it replaces a mask decoder and has no weights.

    Args:
        grid: (H, W) of the patches.
    """

    learns: ClassVar[bool] = False

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def prompts(self, tokens: FrozenVisualTokens, chosen: Tensor, scores: Tensor, image: Tensor) -> Tensor:  # noqa: ARG002
        """The union of the selected regions as logits, 0.5 inside and -0.5 outside.

        Args:
            tokens: of B images.
            chosen: (S, T) bool, the selected tokens of each expression.
            scores: (S, T), not used.
            image: (S,) int64, index of the image of each expression.

        Returns:
            (S, R, R) if tokens are superpixels, else (S, H, W).
        """
        found = chosen.new_zeros((len(chosen), *self._size(tokens)), dtype=torch.float32)
        for number in image.unique().tolist():
            own = image == number
            if tokens.superpixels is not None:
                labels = tokens.superpixels[number]
                found[own] = (chosen[own][:, labels.clamp(min=0)] & (labels >= 0)).float()
            else:
                assert tokens.regions is not None
                shares = (chosen[own].float() @ tokens.regions[number].float()).clamp(max=1)
                found[own] = rearrange(shares, "s (h w) -> s h w", w=self.grid[1])
        return found - 0.5

    def forward(self, mask_inputs: Tensor, prompts: Tensor, image: Tensor) -> Tensor:  # noqa: ARG002
        """The prompts are the masks: mask logits (S, h, w)."""
        return prompts

    def _size(self, tokens: FrozenVisualTokens) -> tuple[int, int]:
        side = None if tokens.superpixels is None else tokens.superpixels.shape[-1]
        return self.grid if side is None else (side, side)


class TokenPointMasks(nn.Module):
    """The masks of a frozen SAM at one point in each selected token, as in `PointPromptedMaskDecoder`.

    Args:
        grid: (H, W) of the patches.
    """

    learns: ClassVar[bool] = False

    def __init__(self, decoder: PointPromptedMaskDecoder, grid: tuple[int, int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.grid = grid

    def prompts(self, tokens: FrozenVisualTokens, chosen: Tensor, scores: Tensor, image: Tensor) -> Tensor:
        """Points in the selected tokens of the highest scores, (S, `MAX_POINTS`, 2) in pixels of SAM's frame.

        Args are those of `RegionMasks.prompts`. NaN where there are fewer tokens.
        """
        side = self.decoder.prompt_encoder.input_image_size[0]
        count = min(self.decoder.MAX_POINTS, chosen.shape[1])
        best = scores.masked_fill(~chosen, -torch.inf).topk(count, dim=1)
        points = token_points(tokens, self.grid)[image].take_along_dim(best.indices[..., None], dim=1)
        # As in `PointPromptedMaskDecoder.points`: upstream adds 0.5 to move a point to the centre of its pixel.
        return (points * side - 0.5).masked_fill(best.values.isinf()[..., None], torch.nan)

    def forward(self, mask_inputs: Tensor, prompts: Tensor, image: Tensor) -> Tensor:
        """SAM's embeddings (B, P, g, g) and points (S, K, 2) -> mask logits (S, 4g, 4g), the maximum over points."""
        return self.by_point(mask_inputs, prompts, image).amax(dim=1)

    def by_point(self, mask_inputs: Tensor, prompts: Tensor, image: Tensor) -> Tensor:
        """As `forward`, before the maximum: mask logits (S, K, 4g, 4g), -inf without a point."""
        is_used = ~prompts.isnan().any(dim=-1)
        number, _ = is_used.nonzero(as_tuple=True)
        masks = self.decoder.best_at_points(ImageEmbedding(mask_inputs), prompts[is_used], image[number])
        by_point = masks.new_full((*is_used.shape, *masks.shape[1:]), -torch.inf)
        by_point[is_used] = masks
        return by_point


def token_points(tokens: FrozenVisualTokens, grid: tuple[int, int]) -> Tensor:
    """A point inside each token's region, (B, T, 2) x and y in 0..1 of the frame; NaN for padding.

    Superpixels: the pixel that is farthest from the superpixel's border. Other regions: of the patches that the token
    represents at least half as much as any, the centre of the one nearest to the region's centroid.

    Args:
        grid: (H, W) of the patches.
    """
    if tokens.superpixels is not None:
        side = tokens.superpixels.shape[-1]
        found = tokens.embeds.new_full((*tokens.mask.shape, 2), torch.nan)
        for points, labels in zip(found, tokens.superpixels, strict=True):
            inside = torch.from_numpy((interior_points(labels.cpu().numpy()) + 0.5) / side)
            points[: len(inside)] = inside.to(points)
        return found
    assert tokens.regions is not None
    regions, (height, width) = tokens.regions.float(), grid
    patches = torch.arange(height * width, device=regions.device)
    centres = torch.stack([(patches % width + 0.5) / width, (patches // width + 0.5) / height], dim=-1)
    centroids = regions @ centres / regions.sum(-1, keepdim=True).clamp(min=1e-6)
    is_main = (regions >= 0.5 * regions.amax(-1, keepdim=True)) & (regions > 0)
    nearest = torch.cdist(centroids, centres.expand(len(regions), -1, -1)).masked_fill(~is_main, torch.inf).argmin(-1)
    return centres[nearest].masked_fill(~tokens.mask[..., None], torch.nan)
