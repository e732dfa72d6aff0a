"""The wiring: patches -> projector -> LLM -> [SEG] state -> mask decoder. Every part is handed in.

A question goes the same way as far as the LLM, which answers it in words.

Source: LISA, https://arxiv.org/abs/2308.00692 (`text_hidden_fcs`, losses); GLaMM, https://arxiv.org/abs/2311.03356.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from harness.backbone.llm import LanguageModel
from harness.backbone.packing import pack
from harness.backbone.sam import MaskHead, PatchEmbedding, SamEmbedding
from projectors import Projector, VisualFeatures, VisualTokens

ANSWER_WORDS = 64
"""The longest answer that is waited for, in tokens of the LLM."""


@dataclass(frozen=True, slots=True)
class Query:
    """The expressions and questions asked about a batch of images; E of them an image, some of which may be padding.

    Args:
        ids: (B, E, L) prompt tokens and behind them what is given of an answer in words, padded on the right.
        mask: (B, E, L) bool; all False for one that is only padding.
        given: (B, E) int64, how many of the tokens are the answer's.
        drawn: (B, E) bool, which are expressions, whose answer is a mask.
    """

    ids: Tensor
    mask: Tensor
    given: Tensor
    drawn: Tensor

    @property
    def real(self) -> Tensor:
        """(B, E) bool, which are asked."""
        return self.mask.any(-1)

    def questions(self) -> "Query":
        """The questions alone; expressions become padding."""
        return replace(self, mask=self.mask & ~self.drawn[..., None], drawn=torch.zeros_like(self.drawn))

    def continued(self, words: Tensor) -> "Query":
        """Each real prompt with one word (M,) more of its answer."""
        real, ids, mask = self.real, F.pad(self.ids, (0, 1)), F.pad(self.mask, (0, 1))
        image, number = real.nonzero(as_tuple=True)
        place = self.mask.sum(-1)[real]
        ids[image, number, place], mask[image, number, place] = words, True
        return replace(self, ids=ids, mask=mask)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of what is asked, in row-major order.

    Args:
        mask_logits: (S, h, w) over the padded frame, for each expression.
        answer_logits: (A, V + 2), the vocabulary, then [SEG], then [REJ]: behind each prompt, and behind each word
            that is given of its answer.
        tokens: the visual tokens that were read.
    """

    mask_logits: Tensor
    answer_logits: Tensor
    tokens: VisualTokens


class Segmenter(nn.Module):
    """One trained model of a cell; everything but the projector is the same in every arm of a study."""

    def __init__(
        self,
        projector: Projector,
        llm: LanguageModel,
        image_embedding: PatchEmbedding | SamEmbedding,
        mask_head: MaskHead,
    ) -> None:
        super().__init__()
        self.projector = projector
        self.llm = llm
        self.image_embedding = image_embedding
        self.mask_head = mask_head
        hidden, out = nn.Linear(llm.width, llm.width), nn.Linear(llm.width, mask_head.width)
        self.prompt = nn.Sequential(hidden, nn.ReLU(), out)
        for layer in (hidden, out):
            # SAM's own tokens have unit variance; a prompt that starts weaker than they are is ignored for long.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, features: VisualFeatures, view: Tensor, query: Query) -> Answer:
        """Features of B images, what else their masks are drawn from (see `Batch.view`), and what is asked of them."""
        tokens = self.projector(features)
        answering, seg = self.read(tokens, query)
        image, _ = query.drawn.nonzero(as_tuple=True)
        return Answer(
            # Without an expression there is nothing to draw.
            mask_logits=self.segment(features.patches, view, seg, image) if len(image) else seg.new_zeros(0, 1, 1),
            answer_logits=self.llm.answer_logits(answering),
            tokens=tokens,
        )

    def read(self, tokens: VisualTokens, query: Query) -> tuple[Tensor, Tensor]:
        """The states that predict what `Answer.answer_logits` is of, (A, D), and those that prompt masks, (S, D)."""
        config, words, mask = self.llm.config, self.llm.embed(query.ids), query.mask
        if config.seg_state == "own":
            words, mask = self.llm.with_own_seg(words, mask, query.drawn)
        packed = pack(tokens, words, mask, bidirectional=config.visual_attention == "bidirectional")
        states = self.llm(packed.embeds, packed.attention, packed.positions)
        asked = packed.first + query.mask.sum(-1) - query.given - 1  # where each prompt's last token stands
        steps = torch.arange(int(query.given.max()) + 1, device=asked.device)
        spoken = query.real[..., None] & (steps <= query.given[..., None])
        image, number, step = spoken.nonzero(as_tuple=True)
        drawing, expression = query.drawn.nonzero(as_tuple=True)
        seg = asked[drawing, expression] + (config.seg_state == "own")
        return states[image, asked[image, number] + step], states[drawing, seg]

    def say(self, tokens: VisualTokens, query: Query, limit: int = ANSWER_WORDS) -> Tensor:
        """The likeliest word after each prompt, time after time: (M, n <= limit) ids, the end's behind an ended answer.

        Each word is a pass over the whole sequence, since packed prompts share what a cache would keep.
        """
        said: list[Tensor] = []
        has_ended = torch.zeros(int(query.real.sum()), dtype=torch.bool, device=query.ids.device)
        while len(said) < limit and not has_ended.all():
            answering, _ = self.read(tokens, query)
            words = self.llm.answer_logits(answering).argmax(-1)
            has_ended |= (words == self.llm.end) | (words >= self.llm.vocabulary)
            said.append(words.masked_fill(has_ended, self.llm.end))
            query = query.continued(said[-1])
        return torch.stack(said, dim=1)

    def segment(self, patches: Tensor, view: Tensor, states: Tensor, image: Tensor) -> Tensor:
        """States (M, D), each of one of the B images, to mask logits (M, h, w)."""
        embedding = self.image_embedding(patches, view)
        return self.mask_head(embedding, self.prompt(states), image)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What learns, by when: `early` in both stages, `late` only in the second (LLM or its LoRA, SSPE)."""
        late_modules: list[nn.Module] = [self.llm, *self.projector.late_modules()]
        late = {id(p) for module in late_modules for p in module.parameters()} - {
            id(self.llm.answers),
            id(self.llm.own_seg),
        }
        learning = [p for p in self.parameters() if p.requires_grad]
        return {
            "early": [p for p in learning if id(p) not in late],
            "late": [p for p in learning if id(p) in late],
        }


def flatten_real(values: Tensor, query: Query) -> Tensor:
    """(B, E, ...) -> (M, ...): only what belongs to a real expression, in the order of `Answer`."""
    return rearrange(values, "b e ... -> (b e) ...")[query.real.flatten()]
