"""Several expressions of an image in one sequence: the visual tokens once, then the expressions side by side.

Each expression sees the image and itself, never another expression, and its positions start after the image, so that
it scores as it would alone.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from projectors import VisualTokens


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """What the LLM runs on; Q is T and the words of the image that is asked most.

    Args:
        embeds: (B, Q, D).
        attention: (B, Q, Q) bool, True where the query (row) may look at the key (column).
        positions: (B, Q) int64.
        first: (B, E) int64, where in the sequence the first token of each expression stands.
    """

    embeds: Tensor
    attention: Tensor
    positions: Tensor
    first: Tensor


def pack(visual: VisualTokens, words: Tensor, words_mask: Tensor, *, bidirectional: bool) -> PackedSequence:
    """Visual tokens followed by every expression of the image.

    Args:
        visual: T tokens an image, padded anywhere.
        words: (B, E, L, D) embedded prompts, padded on the right.
        words_mask: (B, E, L) bool; an expression of no words is padding and attends to nothing.
        bidirectional: whether visual tokens see one another whole, or only those before them.
    """
    num_visual, length = visual.embeds.shape[1], words_mask.shape[-1]
    is_word, lengths = rearrange(words_mask, "b e l -> b (e l)"), words_mask.sum(-1)
    # The words of an image come first, in their order; what no image needs of the padding is cut off.
    kept = (~is_word).byte().argsort(dim=1, stable=True)[:, : int(lengths.sum(1).max())]
    image = torch.arange(len(kept), device=kept.device)[:, None]
    is_valid = torch.cat([visual.mask, is_word[image, kept]], dim=1)
    # 0 for the image, 1..E for the expressions; order inside a part is the order in the sequence.
    part = torch.cat([torch.zeros_like(visual.mask, dtype=kept.dtype), kept // length + 1], dim=1)
    order = torch.arange(part.shape[1], device=kept.device)
    is_visual = part == 0
    allowed = (part[:, None, :] == part[:, :, None]) & (order[None, :] <= order[:, None])
    allowed |= is_visual[:, None, :] & (~is_visual[:, :, None] | bidirectional)
    # A padded query looks at itself alone, since a softmax over nothing is not a number.
    itself = torch.eye(len(order), dtype=torch.bool, device=kept.device)
    attention = (allowed & is_valid[:, None, :] & is_valid[:, :, None]) | itself

    visual_positions = (visual.mask.cumsum(1) - 1).clamp(min=0)
    word_positions = visual.mask.sum(1, keepdim=True) + kept % length
    packed_words = rearrange(words, "b e l d -> b (e l) d")[image, kept]
    return PackedSequence(
        embeds=torch.cat([visual.embeds, packed_words.to(visual.embeds.dtype)], dim=1),
        attention=attention,
        positions=torch.cat([visual_positions, word_positions], dim=1),
        first=num_visual + lengths.cumsum(1) - lengths,
    )
