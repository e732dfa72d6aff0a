"""A frozen SAM's mask decoder, prompted with points that are predicted from the [SEG] hidden state."""

import torch
import torch.nn.functional as F
from einops import rearrange
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from harness.model.mask_decoder.decoder import ImageEmbedding, MaskDecoder


class PointPromptedMaskDecoder(MaskDecoder):
    """Prompts a frozen SAM with a few points predicted from the [SEG] state; the mask is the union of SAM's masks.

    Only the coordinates of the points reach the decoder, so localisation depends on the LLM and its visual tokens.
    """

    learns = False
    MAX_POINTS = 4
    """Points per [SEG] state."""
    MIN_RELATIVE_PROBABILITY = 0.5
    """Minimum probability of a point relative to the most probable one; chosen on validation scenes."""
    WINDOW = 3
    """Side in cells of the window whose probability a point sums, and minimum distance between two points."""

    def __init__(self, prompt_encoder: PromptEncoder, sam_decoder: SamMaskDecoder) -> None:
        super().__init__(prompt_encoder, sam_decoder)
        self.requires_grad_(False)

    def forward(self, embedding: ImageEmbedding, prompts: Tensor, image: Tensor) -> Tensor:
        """As in `MaskDecoder`; a pixel's logit is the maximum over the points' masks."""
        points, is_used = self.points(self.location_logits(prompts))
        number, _ = is_used.nonzero(as_tuple=True)
        masks = self.best_at_points(embedding, points[is_used], image[number])
        by_point = masks.new_full((*is_used.shape, *masks.shape[1:]), -torch.inf)
        by_point[is_used] = masks
        return by_point.amax(1)

    def points(self, location_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Location logits (M, g, g) -> points (M, MAX_POINTS, 2), x and y in pixels of the frame, and which are used.

        The most probable windows are selected greedily; a point is the mean location under the window's probabilities.

        Returns:
            Points, and (M, MAX_POINTS) bool.
        """
        side, pad = location_logits.shape[-1], self.WINDOW // 2
        cells = torch.arange(side, device=location_logits.device)
        probability = rearrange(location_logits.flatten(1).softmax(1), "m (h w) -> m 1 h w", w=side)
        moments = torch.cat([probability, probability * cells, probability * cells[:, None]], dim=1)
        share, *means = F.avg_pool2d(moments, self.WINDOW, stride=1, padding=pad).unbind(1)
        found, is_used = [], []
        first = share.amax((1, 2))
        for _ in range(self.MAX_POINTS):
            value, at = share.flatten(1).max(1)
            x, y = (part.flatten(1).gather(1, at[:, None])[:, 0] / value.clamp(min=1e-12) for part in means)
            found.append(torch.stack([x, y], dim=1))
            is_used.append(value >= self.MIN_RELATIVE_PROBABILITY * first)
            is_far = [(cells - part[:, None]).abs() > self.WINDOW for part in (at // side, at % side)]
            share = share * (is_far[0][:, :, None] | is_far[1][:, None])
        cell = self.prompt_encoder.input_image_size[0] / side
        # Upstream adds 0.5 to move a point from its pixel's corner to the centre.
        return (torch.stack(found, dim=1) + 0.5) * cell - 0.5, torch.stack(is_used, dim=1)
