"""The model of a cell: patches -> projector -> LLM -> [SEG] state -> mask decoder.

An expression is answered by a mask, a question by text that the LLM generates.

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

MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Query:
    """Tokenised expressions and questions about a batch of images, E per image, some of which may be padding.

    Args:
        ids: (B, E, L) int64, the tokens of each prompt followed by those of its answer, if any, padded on the right.
        mask: (B, E, L) bool, False for padding tokens; all False for a padding query.
        answer_lengths: (B, E) int64, number of answer tokens among the tokens.
        is_expression: (B, E) bool, True for an expression, False for a question or padding.
    """

    ids: Tensor
    mask: Tensor
    answer_lengths: Tensor
    is_expression: Tensor

    @property
    def is_valid(self) -> Tensor:
        """(B, E) bool, False for padding queries."""
        return self.mask.any(-1)

    def questions(self) -> "Query":
        """A copy with the questions only; expressions become padding."""
        return replace(
            self, mask=self.mask & ~self.is_expression[..., None], is_expression=torch.zeros_like(self.is_expression)
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's output for a `Query`; expressions and answer tokens are in row-major order of (B, E).

    Args:
        mask_logits: (S, h, w), a mask of the padded frame for each of S expressions; (0, 1, 1) if no masks are decoded.
        location_logits: (S, g, g), where in the padded frame the target of each expression lies, predicted from its
            [SEG] state.
        answer_logits: (A, V + 2), next-token logits at the last prompt token and at each answer token of every valid
            query: the vocabulary, then [SEG], then [REJ].
        tokens: the visual tokens.
    """

    mask_logits: Tensor
    location_logits: Tensor
    answer_logits: Tensor
    tokens: VisualTokens


class Segmenter(nn.Module):
    """Projector, LLM and mask decoder as one module.

    Attributes:
        visual_gain: () float, factor applied to the visual tokens before the LLM; 1 without `match_token_scale`.
        visual_rms: () float, root mean square of the visual tokens that this LLM was trained on; NaN if unknown.
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
            # SAM's tokens have unit variance; with a smaller initial prompt, training starts slowly.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    @torch.no_grad()
    def tokens_rms(self, features: VisualFeatures) -> Tensor:
        """Root mean square () of the visual tokens of these images, after `visual_gain`."""
        tokens = self.projector(features)
        return self.visual_gain * tokens.embeds[tokens.mask].float().square().mean().sqrt()

    def match_token_scale(self, features: VisualFeatures) -> None:
        """Rescale the output of a projector with random weights to the RMS that the LLM was trained on.

        The initial RMS depends on the projector's last layers. A trained LLM hardly attends to much smaller tokens, so
        without rescaling, arms would learn at different speeds for this reason alone.

        Source: data-dependent initial scale, LSUV, https://arxiv.org/abs/1511.06422.
        Differs from the paper: one fixed factor for all tokens instead of a scale in each layer's weights.
        """
        self.visual_gain *= self.visual_rms / self.tokens_rms(features)

    def forward(self, features: VisualFeatures, mask_inputs: Tensor | None, query: Query) -> Answer:
        """Answer the queries about B images.

        Args:
            features: the projector's input.
            mask_inputs: further input of the mask decoder, as in `Batch`; None to decode no masks.
            query: expressions and questions about the images.
        """
        return self.answer(self.projector(features), features.patches, mask_inputs, query)

    def answer(self, tokens: VisualTokens, patches: Tensor, mask_inputs: Tensor | None, query: Query) -> Answer:
        """Answer the queries from visual tokens, which may come from other images than the mask decoder's input.

        Args:
            tokens: input of the LLM.
            patches: (B, N, C), input of the mask decoder.
            mask_inputs: further input of the mask decoder, as in `Batch`; None to decode no masks.
            query: expressions and questions about the images.
        """
        answer_states, seg = self.run_llm(tokens, query)
        image, _ = query.is_expression.nonzero(as_tuple=True)
        prompts = self.prompt(seg)
        if mask_inputs is None or not len(image):
            masks = seg.new_zeros(0, 1, 1)
        else:
            masks = self.segment(patches, mask_inputs, prompts, image)
        return Answer(
            mask_logits=masks,
            location_logits=self.mask_decoder.location_logits(prompts),
            answer_logits=self.llm.answer_logits(answer_states),
            tokens=tokens,
        )

    def run_llm(self, tokens: VisualTokens, query: Query) -> tuple[Tensor, Tensor]:
        """Hidden states that predict `Answer.answer_logits`, (A, D), and [SEG] states of the expressions, (S, D)."""
        packed, prompt_ends = self._pack(tokens, query)
        steps = torch.arange(int(query.answer_lengths.max()) + 1, device=prompt_ends.device)
        is_predicted = query.is_valid[..., None] & (steps <= query.answer_lengths[..., None])
        image, number, step = is_predicted.nonzero(as_tuple=True)
        seg_image, expression = query.is_expression.nonzero(as_tuple=True)
        answers = image, prompt_ends[image, number] + step
        segs = seg_image, prompt_ends[seg_image, expression] + (self.llm.config.seg_state == "own")
        is_selected = torch.zeros_like(packed.positions, dtype=torch.bool)
        is_selected[answers] = is_selected[segs] = True
        states = self.llm.selected_states(packed, is_selected)
        row = is_selected.flatten().cumsum(0).view_as(packed.positions) - 1
        return states[row[answers]], states[row[segs]]

    def generate(self, tokens: VisualTokens, query: Query, max_tokens: int = MAX_ANSWER_TOKENS) -> Tensor:
        """Greedy decoding of an answer to each of M valid queries, all packed and with a key-value cache.

        Returns:
            (M, n) token ids, n <= max_tokens; a finished answer is padded with the end-of-sequence token.
        """
        packed, prompt_ends = self._pack(tokens, query)
        is_valid, image = query.is_valid, torch.arange(len(prompt_ends), device=prompt_ends.device)[:, None]
        cache, keys, prompt_ends = DynamicCache(), packed.positions, prompt_ends.clamp(min=0)
        states = self.llm(packed.embeds, packed.attention, packed.positions, cache)[image, prompt_ends]
        attention, positions = packed.attention[image, prompt_ends], packed.positions[image, prompt_ends]
        itself = torch.eye(prompt_ends.shape[1], dtype=torch.bool, device=prompt_ends.device).expand(
            len(prompt_ends), -1, -1
        )
        # The whole text so far, since the embedding of a token may depend on those before it.
        text, length = F.pad(query.ids, (0, max_tokens)), query.mask.sum(-1)
        number = torch.arange(prompt_ends.shape[1], device=prompt_ends.device)
        generated: list[Tensor] = []
        has_ended = torch.zeros_like(prompt_ends[is_valid], dtype=torch.bool)
        while True:
            likeliest = self.llm.answer_logits(states[is_valid]).argmax(-1)
            has_ended |= (likeliest == self.llm.end_id) | (likeliest >= self.llm.vocabulary_size)
            generated.append(likeliest.masked_fill(has_ended, self.llm.end_id))
            if len(generated) == max_tokens or has_ended.all():
                return torch.stack(generated, dim=1)
            text[is_valid, length[is_valid]] = generated[-1]
            embeds = self.llm.embed(text)[image, number, length]
            length, positions = length + 1, positions + 1
            attention, keys = torch.cat([attention, itself], dim=2), torch.cat([keys, positions], dim=1)
            states = self.llm(embeds, attention, positions, cache, keys)

    def _pack(self, tokens: VisualTokens, query: Query) -> tuple[PackedSequence, Tensor]:
        """The packed input of the LLM, and the index of each prompt's last token in it, (B, E)."""
        config, text, mask = self.llm.config, self.llm.embed(query.ids), query.mask
        if config.seg_state == "own":
            text, mask = self.llm.with_own_seg(text, mask, query.is_expression)
        tokens = self.llm.prepend_prefix(replace(tokens, embeds=tokens.embeds * self.visual_gain))
        packed = pack(tokens, text, mask, bidirectional=config.visual_attention == "bidirectional")
        return packed, packed.first + query.mask.sum(-1) - query.answer_lengths - 1

    def segment(self, patches: Tensor, mask_inputs: Tensor, prompts: Tensor, image: Tensor) -> Tensor:
        """Prompts (M, P), each for the image (M,) of B, -> mask logits (M, h, w)."""
        return self.mask_decoder(self.image_embedding(patches, mask_inputs), prompts, image)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters: `early` for both stages, `late` (LLM or its LoRA, SSPE) for the second only."""
        late_modules: list[nn.Module] = [self.llm, *self.projector.late_modules()]
        late = {id(p) for module in late_modules for p in module.parameters()} - {
            id(self.llm.answers),
            id(self.llm.own_seg),
        }
        trainable = [p for p in self.parameters() if p.requires_grad]
        return {
            "early": [p for p in trainable if id(p) not in late],
            "late": [p for p in trainable if id(p) in late],
        }
