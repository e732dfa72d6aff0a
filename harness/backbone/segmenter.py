"""The wiring: patches -> projector -> LLM -> [SEG] state -> mask decoder. Every part is handed in.

Source: LISA, https://arxiv.org/abs/2308.00692 (`text_hidden_fcs`, losses); GLaMM, https://arxiv.org/abs/2311.03356.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from harness.backbone.llm import LanguageModel
from harness.backbone.packing import pack
from harness.backbone.sam import MaskHead, PatchEmbedding, SamEmbedding
from projectors import Projector, VisualFeatures, VisualTokens


@dataclass(frozen=True, slots=True)
class Query:
    """The expressions asked about a batch of images; E of them an image, some of which may be padding.

    Args:
        ids: (B, E, L) prompt tokens, padded on the right.
        mask: (B, E, L) bool; all False for an expression that is only padding.
    """

    ids: Tensor
    mask: Tensor

    @property
    def real(self) -> Tensor:
        """(B, E) bool, which expressions are asked."""
        return self.mask.any(-1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says, for the M real expressions of a batch in row-major order.

    Args:
        mask_logits: (M, h, w) over the padded frame.
        answer_logits: (M, V + 2), the vocabulary, then [SEG], then [REJ].
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
        image = repeat(torch.arange(len(query.ids), device=seg.device), "b -> b e", e=query.ids.shape[1])
        return Answer(
            mask_logits=self.segment(features.patches, view, seg, image[query.real]),
            answer_logits=self.llm.answer_logits(answering),
            tokens=tokens,
        )

    def read(self, tokens: VisualTokens, query: Query) -> tuple[Tensor, Tensor]:
        """For each real expression the state that predicts the answer and that which prompts the mask, (M, D) each."""
        config, words, mask = self.llm.config, self.llm.embed(query.ids), query.mask
        if config.seg_state == "own":
            words, mask = self.llm.with_own_seg(words, mask)
        packed = pack(tokens, words, mask, bidirectional=config.visual_attention == "bidirectional")
        states = self.llm(packed.embeds, packed.attention, packed.positions)
        last = repeat(packed.last, "b e -> b e d", d=states.shape[-1])
        seg = states.gather(1, last)[query.real]
        return (states.gather(1, (last - 1).clamp(min=0))[query.real] if config.seg_state == "own" else seg), seg

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
