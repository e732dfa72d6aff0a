"""The linear reader: which visual tokens an expression refers to, by a conditional logit model of words and tokens.

The score of a token is a bilinear form of the expression's word counts w and the token's numbers x (its vector before
the projection, and the position of its region): w' W x. "No target" is one more alternative, with the score w' n. The
probabilities of the alternatives are the softmax of their scores. The negative log-likelihood is convex in W and n.
With a ridge penalty it has exactly one minimum, which depends on no seed and no number of steps.

Source: McFadden 1974, conditional logit analysis of qualitative choice behavior.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.model.linear.bag_of_words import BagOfWords
from harness.model.linear.frozen_tokens import FrozenTokens, FrozenVisualTokens
from harness.model.linear.masks import RegionMasks, TokenPointMasks
from harness.model.segmenter import Answer, Query, Segmenter
from projectors import VisualTokens


class LinearReader(Segmenter):
    """A segmenter whose LLM is a linear model; the mask is that of the tokens with a high probability.

    Attributes:
        weight: (V, F) W, of word counts and standardised numbers of a token.
        no_target: (V,) n.
        mean, scale: (F,) by which the numbers of a token are standardised.
        threshold: () lowest probability of a selected token, as a share of the most probable token's.
    """

    mean: Tensor
    scale: Tensor
    threshold: Tensor

    def __init__(self, projector: FrozenTokens, llm: BagOfWords, masks: RegionMasks | TokenPointMasks) -> None:
        nn.Module.__init__(self)
        self.projector = projector
        self.llm = llm
        self.mask_decoder = cast(Any, masks)  # it is no `MaskDecoder`: its prompts are tokens
        self.prompt = nn.Sequential()
        self.weight = nn.Parameter(torch.zeros(llm.width, projector.width))
        self.no_target = nn.Parameter(torch.zeros(llm.width))
        self.register_buffer("mean", torch.zeros(projector.width))
        self.register_buffer("scale", torch.ones(projector.width))
        self.register_buffer("threshold", torch.ones(()))

    @property
    def words(self) -> BagOfWords:
        """The bag of words, which replaces the LLM."""
        assert isinstance(self.llm, BagOfWords)
        return self.llm

    @property
    def masks(self) -> RegionMasks | TokenPointMasks:
        """The masks of tokens, which replace the mask decoder."""
        return cast(RegionMasks | TokenPointMasks, self.mask_decoder)

    def standardise(self, embeds: Tensor) -> Tensor:
        """Numbers of tokens (..., F) -> the same with mean 0 and variance 1 over the tokens of the training images."""
        return (embeds.float() - self.mean) / self.scale

    def log_probabilities(self, tokens: VisualTokens, query: Query) -> tuple[Tensor, Tensor]:
        """Of each token, (S, T), -inf for padding, and of having no target, (S,); S expressions in row-major order."""
        image, _ = query.is_expression.nonzero(as_tuple=True)
        words = self.words.count_words(query.ids[query.is_expression], query.mask[query.is_expression])
        with torch.autocast(words.device.type, enabled=False):
            scores = self.standardise(tokens.embeds)[image] @ (words @ self.weight)[..., None]
            scores = scores[..., 0].masked_fill(~tokens.mask[image], -torch.inf)
            found = torch.cat([scores, (words @ self.no_target)[:, None]], dim=1).log_softmax(dim=1)
        return found[:, :-1], found[:, -1]

    def answer(self, tokens: VisualTokens, patches: Tensor, mask_inputs: Tensor | None, query: Query) -> Answer:
        """As in `Segmenter`; the location logits are the log probability that a random pixel of a token lies there."""
        answer_states, prompts = self.run_llm(tokens, query)
        image, _ = query.is_expression.nonzero(as_tuple=True)
        has_masks = mask_inputs is not None and len(image) > 0
        return Answer(
            mask_logits=self.segment(patches, mask_inputs, prompts, image) if has_masks else prompts.new_zeros(0, 1, 1),
            location_logits=self._location_logits(tokens, query),
            answer_logits=self.llm.answer_logits(answer_states),
            tokens=tokens,
        )

    def run_llm(self, tokens: VisualTokens, query: Query) -> tuple[Tensor, Tensor]:
        """Logits of [SEG] and [REJ], (S, 2), and the prompts of the masks."""
        assert isinstance(tokens, FrozenVisualTokens)
        image, _ = query.is_expression.nonzero(as_tuple=True)
        scores, no_target = self.log_probabilities(tokens, query)
        states = torch.stack([scores.logsumexp(dim=1), no_target], dim=1)
        with torch.autocast(scores.device.type, enabled=False):
            return states, self.masks.prompts(tokens, self.choose(scores), scores, image)

    def choose(self, scores: Tensor) -> Tensor:
        """Log probabilities of tokens (S, T) -> (S, T) bool, the selected ones: at least one for each expression."""
        return (scores >= scores.amax(dim=1, keepdim=True) + self.threshold.log()) & scores.isfinite()

    def segment(self, patches: Tensor, mask_inputs: Tensor | None, prompts: Tensor, image: Tensor) -> Tensor:  # noqa: ARG002
        """As in `Segmenter`, with the prompts of `run_llm`."""
        assert mask_inputs is not None
        return self.masks(mask_inputs, prompts, image)

    def _location_logits(self, tokens: VisualTokens, query: Query) -> Tensor:
        """(S, H, W) over the patches."""
        assert tokens.regions is not None
        image, _ = query.is_expression.nonzero(as_tuple=True)
        scores, _ = self.log_probabilities(tokens, query)
        regions = tokens.regions.float()
        shares = regions / regions.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        with torch.autocast(scores.device.type, enabled=False):
            at_patches = (scores.softmax(dim=1)[:, None] @ shares[image])[:, 0]
        return at_patches.clamp(min=1e-12).log().unflatten(1, self.projector.dims.grid)
