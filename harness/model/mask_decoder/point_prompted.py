"""A frozen SAM's mask decoder, prompted with points that are predicted from the [SEG] hidden state."""

import torch
import torch.nn.functional as F
from einops import rearrange
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from harness.model.mask_decoder.decoder import ImageEmbedding, MaskDecoder


class PointPromptedMaskDecoder(MaskDecoder):
    """A frozen SAM that is asked about the few places where a [SEG] state points: the mask is all that it answers.

    Whatever words a state holds, nothing but places reaches the decoder, so that a mask says what the LLM has read from
    its visual tokens.
    """

    learns = False
    MAX_POINTS = 4
    """How many places one state may mean."""
    WORTH = 0.5
    """How likely a place must be beside the likeliest one; chosen on validation scenes."""
    REACH = 3
    """Cells within which likelihood is one place's: a window of that side counts for it, and so far off is the next."""

    def __init__(self, prompt_encoder: PromptEncoder, sam_decoder: SamMaskDecoder) -> None:
        super().__init__(prompt_encoder, sam_decoder)
        self.requires_grad_(False)

    def forward(self, embedding: ImageEmbedding, prompts: Tensor, image: Tensor) -> Tensor:
        """As in `MaskHead`; the logits of a pixel are those of the point that claims it most."""
        points, is_meant = self.points(self.location_logits(prompts))
        number, _ = is_meant.nonzero(as_tuple=True)
        masks = self.best_at_points(embedding, points[is_meant], image[number])
        answers = masks.new_full((*is_meant.shape, *masks.shape[1:]), -torch.inf)
        answers[is_meant] = masks
        return answers.amax(1)

    def points(self, location_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Place logits (M, g, g) -> points (M, MAX_POINTS, 2), x and y in pixels of the frame, and which are meant.

        One after another the likeliest windows are taken, a point in the middle of what is likely in each.
        """
        side, pad = location_logits.shape[-1], self.REACH // 2
        cells = torch.arange(side, device=location_logits.device)
        likely = rearrange(location_logits.flatten(1).softmax(1), "m (h w) -> m 1 h w", w=side)
        moments = torch.cat([likely, likely * cells, likely * cells[:, None]], dim=1)
        share, *middle = F.avg_pool2d(moments, self.REACH, stride=1, padding=pad).unbind(1)
        found, is_meant = [], []
        first = share.amax((1, 2))
        for _ in range(self.MAX_POINTS):
            value, at = share.flatten(1).max(1)
            x, y = (part.flatten(1).gather(1, at[:, None])[:, 0] / value.clamp(min=1e-12) for part in middle)
            found.append(torch.stack([x, y], dim=1))
            is_meant.append(value >= self.WORTH * first)
            away = [(cells - part[:, None]).abs() > self.REACH for part in (at // side, at % side)]
            share = share * (away[0][:, :, None] | away[1][:, None])
        cell = self.prompt_encoder.input_image_size[0] / side
        # Upstream takes a point as a pixel's corner and moves it to its middle.
        return (torch.stack(found, dim=1) + 0.5) * cell - 0.5, torch.stack(is_meant, dim=1)
