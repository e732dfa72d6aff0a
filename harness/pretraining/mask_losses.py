"""Losses on SAM's masks and their predicted IoU.

Source: Segment Anything, https://arxiv.org/abs/2304.02643, appendix A, "Losses": focal and dice loss with weights 20
and 1, the squared error of the predicted IoU, the smallest loss of three masks.
Differs from the paper: targets are the covered shares of mask pixels, so the focal loss is the one for soft targets
(https://arxiv.org/abs/2006.04388, equation 5); every prompt trains both the mask for unambiguous prompts and the three
others; a tenth of the mean loss of the three masks is added to the smallest, because in scenes a point has one correct
mask, and an alternative whose loss is never the smallest would not be trained.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FOCAL_WEIGHT = 20.0
ALL_MASKS_WEIGHT = 0.1


def mask_loss(logits: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
    """Loss on masks and predicted IoU, the mean over K prompts.

    Args:
        logits: (K, 4, h, w): the mask for unambiguous prompts, then three alternatives.
        scores: (K, 4), the predicted IoU of each mask.
        targets: (K, h, w) in 0..1.
    """
    target = targets.unsqueeze(1).expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (entropy * (probability - target).square()).mean((2, 3))
    losses = FOCAL_WEIGHT * focal + dice_loss(probability, target)
    with torch.no_grad():
        true_iou = iou(logits > 0, target > 0.5)
    alternatives = losses[:, 1:]
    masks = losses[:, 0] + alternatives.amin(1) + ALL_MASKS_WEIGHT * alternatives.mean(1)
    return masks.mean() + (scores - true_iou).square().mean()


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - dice over the last two axes; the squares in the denominator make 0 attainable for soft targets."""
    common = (probability * target).sum((-2, -1))
    total = probability.square().sum((-2, -1)) + target.square().sum((-2, -1))
    return 1 - (2 * common + 1) / (total + 1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of bool masks over the last two axes; 1 where both are empty."""
    union = (first | second).sum((-2, -1))
    return torch.where(union > 0, (first & second).sum((-2, -1)) / union.clamp(min=1), 1.0)


def shares(masks: Tensor, side: int) -> Tensor:
    """Masks (K, R, R) bool -> (K, side, side), the covered share of each coarser pixel."""
    step = masks.shape[-1] // side
    return rearrange(masks.float(), "k (h i) (w j) -> k h w (i j)", i=step, j=step).mean(-1)
