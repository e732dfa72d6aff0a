"""The LLM: reads visual tokens and what is asked, answers an expression by [SEG] or [REJ] and a question in words.

[SEG] and [REJ] are rows of their own beside the pretrained vocabulary, so that only they are trained and no tokenizer
changes. Visual tokens stand where a user would say them: behind the word that begins every text, or behind a chat
template's head, and before the prompt. They come as the projector makes them; where a family scales its words (Gemma),
it does so as it embeds them.

Source: LISA, https://arxiv.org/abs/2308.00692 ([SEG] as mask); GSVA, https://arxiv.org/abs/2312.10103 ([REJ]).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import WeightsError
from harness.model.config import LLMConfig
from harness.model.llm.pretrained import load_pretrained
from harness.model.llm.tiny import build_tiny
from harness.model.weights.resolution import WeightsRecord, resolve
from projectors import VisualTokens

_SAID = "\ufffc"
"""Stands in a chat's turn for what is said there."""
SEG, REJ = 0, 1
"""Index of an answer among the two trained rows; in `answer_logits` they come after the vocabulary."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokenised prompts and what of their answers is given, padded on the right.

    Args:
        ids: (E, L) int64, the words of a prompt, then those of its answer.
        mask: (E, L) bool.
        given: (E,) int64, how many of the words are the answer's.
    """

    ids: Tensor
    mask: Tensor
    answer_lengths: Tensor


class LanguageModel(nn.Module):
    """A causal LM of transformers, with two answer rows, reached through embeddings.

    Args:
        model: the causal LM; whether its parameters learn is decided by whoever builds it.
        tokenizer: its tokenizer.
        config: prompt template and how visual tokens attend to one another.
        weights: where the weights come from; None for a model trained from scratch.

    Attributes:
        opening: (O,) int64, the words before the visual tokens; none for `tiny`.
    """

    prefix_ids: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: LLMConfig,
        weights: WeightsRecord | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.weights = weights
        shape: Any = model.config
        self._shape = shape.get_text_config()
        before, self._behind = self._turn() if config.prompt == "chat" else (self._first_word(), "")
        self.register_buffer(
            "prefix_ids", torch.tensor(self._tokenise([before])[0], dtype=torch.int64), persistent=False
        )
        head = model.get_output_embeddings().weight
        self.answers = nn.Parameter(torch.zeros(2, head.shape[1]).normal_(std=float(head.detach().float().std())))
        self.own_seg: nn.Parameter | None = None
        if config.seg_state == "own":
            table: Any = model.get_input_embeddings()
            words = table.weight.detach().float()
            self.own_seg = nn.Parameter(torch.zeros(words.shape[1]).normal_(std=float(words.std())))

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return int(self._shape.hidden_size)

    @property
    def vocabulary(self) -> int:
        """V, how many words the output layer knows, without the two answers."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def end(self) -> int:
        """Id of the word that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    def format_prompt(self, expression: str) -> str:
        """The fixed template around an expression; all other braces are text."""
        return self.config.template.replace("{expression}", expression)

    def prompts(self, texts: Sequence[str], answers: Sequence[str] | None = None) -> Prompts:
        """What is said to the model, and what is given of each answer, which may be nothing."""
        answers = [""] * len(texts) if answers is None else answers
        is_chat = self.config.prompt == "chat"
        prompted = [f"{text}{self._behind}" for text in texts]
        # An answer stands behind a plain prompt as a word behind another; a chat's template has led up to it.
        space = "" if is_chat else " "
        whole = [f"{text}{space}{answer}" if answer else text for text, answer in zip(prompted, answers, strict=True)]
        prompt_rows = self._tokenise(prompted)
        rows = self._tokenise(whole) if any(answers) else prompt_rows
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (longest - len(row))] for row in rows])
        mask = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
        answer_lengths = torch.tensor([len(row) - len(prompt) for row, prompt in zip(rows, prompt_rows, strict=True)])
        return Prompts(ids, mask, answer_lengths)

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return rows

    def words(self, ids: Sequence[int]) -> str:
        """The text of an answer, up to the word that ends it."""
        kept = list(takewhile(lambda word: word != self.end and word < self.vocabulary, ids))
        return str(self.tokenizer.decode(kept)).strip()

    def _turn(self) -> tuple[str, str]:
        """The tokenizer's own template before what a user says and behind it, up to where the model answers.

        Raises:
            WeightsError: it cannot be used so.
        """
        prompted = [{"role": "user", "content": _SAID}]
        try:
            turn = str(self.tokenizer.apply_chat_template(prompted, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError, ValueError) as error:
            raise WeightsError(
                f"the chat template of {self.config.name!r} cannot be used ({error}); use llm.prompt: plain"
            ) from None
        head, found, behind = turn.partition(_SAID)
        if not found:
            raise WeightsError(
                f"the chat template of {self.config.name!r} leaves out what a user says; use llm.prompt: plain"
            )
        return head, behind

    def _first_word(self) -> str:
        """The special token that the tokenizer begins every text with, if any."""
        first = self.tokenizer.bos_token
        has_one = first is not None and self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]
        return str(first) if has_one else ""

    def prepend_prefix(self, visual: VisualTokens) -> VisualTokens:
        """Visual tokens (B, T, D) behind what stands before them: (B, O + T, D)."""
        words = self.embed(self.prefix_ids).to(visual.embeds.dtype).expand(len(visual.embeds), -1, -1)
        return VisualTokens(
            torch.cat([words, visual.embeds], dim=1), F.pad(visual.mask, (len(self.prefix_ids), 0), value=True)
        )

    def embed(self, ids: Tensor) -> Tensor:
        """ids (..., L) -> embeddings (..., L, D)."""
        return self.model.get_input_embeddings()(ids)

    def forward(
        self,
        embeds: Tensor,
        attention: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B, Q, D).

        Args:
            embeds: (B, Q, D).
            attention: (B, Q, K) bool, True where the query (row) may look at the key (column).
            positions: (B, Q) position ids of the queries.
            cache: keys and values of what was read before, to which those of the queries are added; None for none.
            key_positions: (B, K) position ids of all that is looked at; None where it is the queries alone.
        """
        decoder = self.model.get_decoder()
        output = decoder(
            inputs_embeds=embeds,
            attention_mask=self._masks(attention, positions, positions if key_positions is None else key_positions),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def _masks(self, attention: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask (B, 1, Q, K) that the family's layers take, or one for each kind of them.

        Layers with a sliding window see no further than it by position, as they would of one expression alone; by
        place in the sequence, expressions packed behind others would lose sight of the image.
        """
        config = self._shape
        is_sliding = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
        window = getattr(config, "sliding_window", None)
        if window is None or (is_sliding and not any(is_sliding)):
            return self._as_taken(attention)
        near = (positions[:, :, None] - key_positions[:, None]).abs() < window
        if not is_sliding:
            return self._as_taken(attention & near)
        return {
            "full_attention": self._as_taken(attention),
            "sliding_attention": self._as_taken(attention & near),
        }

    def _as_taken(self, attention: Tensor) -> Tensor:
        """(B, Q, K) bool -> (B, 1, Q, K); plain attention adds its mask to the scores."""
        mask = attention.unsqueeze(1)
        if self.model.config._attn_implementation != "eager":
            return mask
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)

    def answer_logits(self, states: Tensor) -> Tensor:
        """states (M, D) -> (M, V + 2): the vocabulary, then [SEG], then [REJ]."""
        words = self.model.get_output_embeddings()(states)
        logits = torch.cat([words, states @ self.answers.to(states.dtype).T], dim=-1)
        # Cohere multiplies, Granite divides; either is 1 elsewhere.
        scale = (getattr(self._shape, "logit_scale", None) or 1.0) / (
            getattr(self._shape, "logits_scaling", None) or 1.0
        )
        logits = logits * scale
        cap = getattr(self._shape, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()

    def with_own_seg(self, words: Tensor, mask: Tensor, is_expression: Tensor) -> tuple[Tensor, Tensor]:
        """[SEG] put behind every expression, as if the LLM had answered it.

        Args:
            words: (B, E, L, D) embedded prompts, padded on the right.
            mask: (B, E, L) bool.
            drawn: (B, E) bool, which prompts are expressions.

        Returns:
            The same of length L + 1.
        """
        assert self.own_seg is not None, "the configuration reads [SEG] where it is predicted"
        words, longer = F.pad(words, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        length = mask.sum(dim=-1, keepdim=True)
        is_seg = (torch.arange(longer.shape[-1], device=mask.device) == length) & is_expression[..., None]
        return torch.where(is_seg[..., None], self.own_seg.to(words.dtype), words), longer | is_seg


def build_llm(config: LLMConfig, words: Iterable[str], base: torch.dtype = torch.float32) -> LanguageModel:
    """`tiny` from scratch over these words, or a pretrained causal LM by name, hub id or folder, with its LoRA.

    Args:
        words: what is asked and answered in training is made of; a pretrained LLM brings its own vocabulary.
        base: in which a pretrained LLM is held, but for what learns, which is in float32. Where products are in
            bfloat16 anyway, the base in it gives the same in half the memory.

    Raises:
        WeightsError: the pretrained weights cannot be found or do not load strictly, have fewer layers than are to be
            kept, no layers of the LoRA's names or no chat template, or cannot be quantised here.
    """
    if config.name == "tiny":
        return LanguageModel(*build_tiny(config, words), config, weights=None)
    record = resolve(config.name)
    return LanguageModel(*load_pretrained(record, config, base), config, record)
