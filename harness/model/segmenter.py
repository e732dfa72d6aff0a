"""The wiring: patches -> projector -> LLM -> [SEG] state -> mask decoder. Every part is handed in.

A question goes the same way as far as the LLM, which answers it in words.

Source: LISA, https://arxiv.org/abs/2308.00692 (`text_hidden_fcs`, losses); GLaMM, https://arxiv.org/abs/2311.03356.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from harness.model.llm.language_model import LanguageModel
from harness.model.llm.packing import PackedSequence, pack
from harness.model.mask_decoder.decoder import MaskDecoder, PatchEmbedding, SamEmbedding
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
    answer_lengths: Tensor
    is_expression: Tensor

    @property
    def is_valid(self) -> Tensor:
        """(B, E) bool, which are asked."""
        return self.mask.any(-1)

    def questions(self) -> "Query":
        """The questions alone; expressions become padding."""
        return replace(
            self, mask=self.mask & ~self.is_expression[..., None], is_expression=torch.zeros_like(self.is_expression)
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of what is asked, in row-major order.

    Args:
        mask_logits: (S, h, w) over the padded frame, for each expression.
        location_logits: (S, g, g) over the padded frame, where the [SEG] state points in the decoder's own coordinates.
        answer_logits: (A, V + 2), the vocabulary, then [SEG], then [REJ]: behind each prompt, and behind each word
            that is given of its answer.
        tokens: the visual tokens that were read.
    """

    mask_logits: Tensor
    location_logits: Tensor
    answer_logits: Tensor
    tokens: VisualTokens


class Segmenter(nn.Module):
    """One trained model of a cell; everything but the projector is the same in every arm of a study.

    Attributes:
        visual_gain: what the projector's tokens are multiplied by before the LLM reads them; 1 without `match`.
        visual_rms: root mean square of the tokens that this LLM was trained on, () float; not a number where it is not
            known.
    """

    visual_gain: Tensor
    visual_rms: Tensor

    def __init__(
        self,
        projector: Projector,
        llm: LanguageModel,
        image_embedding: PatchEmbedding | SamEmbedding,
        mask_decoder: MaskDecoder,
    ) -> None:
        super().__init__()
        self.projector = projector
        self.llm = llm
        self.image_embedding = image_embedding
        self.mask_decoder = mask_decoder
        self.register_buffer("visual_gain", torch.ones(()))
        self.register_buffer("visual_rms", torch.tensor(torch.nan))
        hidden, out = nn.Linear(llm.width, llm.width), nn.Linear(llm.width, mask_decoder.width)
        self.prompt = nn.Sequential(hidden, nn.ReLU(), out)
        for layer in (hidden, out):
            # SAM's own tokens have unit variance; a prompt that starts weaker than they are is ignored for long.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    @torch.no_grad()
    def tokens_rms(self, features: VisualFeatures) -> Tensor:
        """Root mean square () of the visual tokens of these images, as the LLM reads them."""
        tokens = self.projector(features)
        return self.visual_gain * tokens.embeds[tokens.mask].float().square().mean().sqrt()

    def match_token_scale(self, features: VisualFeatures) -> None:
        """Rescales the output of a projector with random weights to the RMS that the LLM was trained on.

        Their size at random is an accident of each projector's last layers: next to a trained LLM's own states small
        tokens go unheard, and how soon an arm learns would be a matter of that.

        Source: data-dependent scale at the start, LSUV, https://arxiv.org/abs/1511.06422.
        Differs from the paper: one factor for all tokens, kept, in place of a scale in each layer's weights.
        """
        self.visual_gain *= self.visual_rms / self.tokens_rms(features)

    def forward(self, features: VisualFeatures, mask_inputs: Tensor | None, query: Query) -> Answer:
        """Features of B images, what else their masks are drawn from (see `Batch.view`), and what is asked of them."""
        return self.answer(self.projector(features), features.patches, mask_inputs, query)

    def answer(self, tokens: VisualTokens, patches: Tensor, mask_inputs: Tensor | None, query: Query) -> Answer:
        """The LLM reads these tokens; the mask decoder sees the images by their patches (B, N, C) and views.

        Without views no masks are drawn.
        """
        answering, seg = self.run_llm(tokens, query)
        image, _ = query.is_expression.nonzero(as_tuple=True)
        prompts = self.prompt(seg)
        if mask_inputs is None or not len(image):
            masks = seg.new_zeros(0, 1, 1)
        else:
            masks = self.segment(patches, mask_inputs, prompts, image)
        return Answer(
            mask_logits=masks,
            location_logits=self.mask_decoder.location_logits(prompts),
            answer_logits=self.llm.answer_logits(answering),
            tokens=tokens,
        )

    def run_llm(self, tokens: VisualTokens, query: Query) -> tuple[Tensor, Tensor]:
        """The states that predict what `Answer.answer_logits` is of, (A, D), and those that prompt masks, (S, D)."""
        packed, prompt_ends = self._pack(tokens, query)
        states = self.llm(packed.embeds, packed.attention, packed.positions)
        steps = torch.arange(int(query.answer_lengths.max()) + 1, device=prompt_ends.device)
        spoken = query.is_valid[..., None] & (steps <= query.answer_lengths[..., None])
        image, number, step = spoken.nonzero(as_tuple=True)
        drawing, expression = query.is_expression.nonzero(as_tuple=True)
        seg = prompt_ends[drawing, expression] + (self.llm.config.seg_state == "own")
        return states[image, prompt_ends[image, number] + step], states[drawing, seg]

    def generate(self, tokens: VisualTokens, query: Query, limit: int = ANSWER_WORDS) -> Tensor:
        """The likeliest word after each prompt, time after time: (M, n <= limit) ids, the end's behind an ended answer.

        What was read is kept; each further word of all prompts is one short pass over it.
        """
        packed, prompt_ends = self._pack(tokens, query)
        is_valid, image = query.is_valid, torch.arange(len(prompt_ends), device=prompt_ends.device)[:, None]
        cache, keys, prompt_ends = DynamicCache(), packed.positions, prompt_ends.clamp(min=0)
        states = self.llm(packed.embeds, packed.attention, packed.positions, cache)[image, prompt_ends]
        seen, positions = packed.attention[image, prompt_ends], packed.positions[image, prompt_ends]
        itself = torch.eye(prompt_ends.shape[1], dtype=torch.bool, device=prompt_ends.device).expand(
            len(prompt_ends), -1, -1
        )
        # What was asked and said so far, since a word may be embedded with those before it.
        text, length = F.pad(query.ids, (0, limit)), query.mask.sum(-1)
        number = torch.arange(prompt_ends.shape[1], device=prompt_ends.device)
        generated: list[Tensor] = []
        has_ended = torch.zeros_like(prompt_ends[is_valid], dtype=torch.bool)
        while True:
            likeliest = self.llm.answer_logits(states[is_valid]).argmax(-1)
            has_ended |= (likeliest == self.llm.end) | (likeliest >= self.llm.vocabulary)
            generated.append(likeliest.masked_fill(has_ended, self.llm.end))
            if len(generated) == limit or has_ended.all():
                return torch.stack(generated, dim=1)
            text[is_valid, length[is_valid]] = generated[-1]
            words = self.llm.embed(text)[image, number, length]
            length, positions = length + 1, positions + 1
            seen, keys = torch.cat([seen, itself], dim=2), torch.cat([keys, positions], dim=1)
            states = self.llm(words, seen, positions, cache, keys)

    def _pack(self, tokens: VisualTokens, query: Query) -> tuple[PackedSequence, Tensor]:
        """What the LLM runs on, and where in it each prompt's last token stands, (B, E)."""
        config, words, mask = self.llm.config, self.llm.embed(query.ids), query.mask
        if config.seg_state == "own":
            words, mask = self.llm.with_own_seg(words, mask, query.is_expression)
        tokens = self.llm.prepend_prefix(replace(tokens, embeds=tokens.embeds * self.visual_gain))
        packed = pack(tokens, words, mask, bidirectional=config.visual_attention == "bidirectional")
        return packed, packed.first + query.mask.sum(-1) - query.answer_lengths - 1

    def segment(self, patches: Tensor, mask_inputs: Tensor, prompts: Tensor, image: Tensor) -> Tensor:
        """Prompts (M, P), each of one of the B images, to mask logits (M, h, w)."""
        return self.mask_decoder(self.image_embedding(patches, mask_inputs), prompts, image)

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
