"""The LLM: takes visual tokens and prompts; answers an expression with [SEG] or [REJ] and a question with text.

[SEG] and [REJ] are two trainable rows of the output layer, next to the pretrained vocabulary; the tokenizer does not
change. The input is a prefix (BOS, or the beginning of a chat turn), the visual tokens, then the prompt. Visual tokens
are not rescaled, also where a family scales its token embeddings (Gemma).

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
from harness.model.llm.packing import PackedSequence
from harness.model.llm.pretrained import load_pretrained
from harness.model.llm.selected_states import selected_states
from harness.model.llm.tiny import build_tiny
from harness.model.weights.resolution import WeightsRecord, resolve
from projectors import VisualTokens

_PLACEHOLDER = "\ufffc"
"""Content of a chat turn, used to split the chat template around it."""
MAX_TOKEN_ROWS = 2**16
"""Texts whose token ids are kept."""
SEG, REJ = 0, 1
"""Indices of the two trained output rows; in `answer_logits` they follow the vocabulary."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokenised prompts with their answers, padded on the right.

    Args:
        ids: (E, L) int64, the tokens of a prompt, then those of its answer.
        mask: (E, L) bool, False for padding.
        answer_lengths: (E,) int64, number of answer tokens.
    """

    ids: Tensor
    mask: Tensor
    answer_lengths: Tensor


class LanguageModel(nn.Module):
    """A causal LM of transformers whose input is embeddings, with two additional output rows.

    Args:
        model: the causal LM; the caller decides which of its parameters are trainable.
        tokenizer: its tokenizer.
        config: prompt template, attention between visual tokens, and source of the [SEG] state.
        weights: source of the weights; None for a model trained from scratch.

    Attributes:
        prefix_ids: (O,) int64, the tokens before the visual tokens; empty for `tiny`.
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
        self._token_rows: dict[str, list[int]] = {}
        shape: Any = model.config
        self._shape = shape.get_text_config()
        prefix, self._suffix = self._split_turn() if config.prompt == "chat" else (self._first_token(), "")
        self.register_buffer(
            "prefix_ids", torch.tensor(self._tokenise([prefix])[0], dtype=torch.int64), persistent=False
        )
        head = model.get_output_embeddings().weight
        self.answers = nn.Parameter(torch.zeros(2, head.shape[1]).normal_(std=float(head.detach().float().std())))
        self.own_seg: nn.Parameter | None = None
        if config.seg_state == "own":
            table: Any = model.get_input_embeddings()
            embeddings = table.weight.detach().float()
            self.own_seg = nn.Parameter(torch.zeros(embeddings.shape[1]).normal_(std=float(embeddings.std())))

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return int(self._shape.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """V, rows of the output layer without [SEG] and [REJ]."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def end_id(self) -> int:
        """Id of the end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    def format_prompt(self, expression: str) -> str:
        """Insert an expression into the prompt template; other braces in the template are plain text."""
        return self.config.template.replace("{expression}", expression)

    def prompts(self, texts: Sequence[str], answers: Sequence[str] | None = None) -> Prompts:
        """Tokenise prompts with their answers. An answer may be empty; None means that all are."""
        answers = [""] * len(texts) if answers is None else answers
        is_chat = self.config.prompt == "chat"
        prompts = [f"{text}{self._suffix}" for text in texts]
        # A chat template ends where the answer begins; after a plain prompt a space separates the two.
        space = "" if is_chat else " "
        whole = [f"{text}{space}{answer}" if answer else text for text, answer in zip(prompts, answers, strict=True)]
        prompt_rows = self._tokenise(prompts)
        rows = self._tokenise(whole) if any(answers) else prompt_rows
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (longest - len(row))] for row in rows])
        mask = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
        answer_lengths = torch.tensor([len(row) - len(prompt) for row, prompt in zip(rows, prompt_rows, strict=True)])
        return Prompts(ids, mask, answer_lengths)

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; those of recent texts are kept, because training repeats its expressions."""
        if len(self._token_rows) > MAX_TOKEN_ROWS:
            self._token_rows.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self._token_rows]
        if missing:
            rows = self.tokenizer(missing, add_special_tokens=False)["input_ids"]
            self._token_rows.update(zip(missing, rows, strict=True))
        return [self._token_rows[text] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, up to its end-of-sequence token."""
        kept = list(takewhile(lambda token: token != self.end_id and token < self.vocabulary_size, ids))
        return str(self.tokenizer.decode(kept)).strip()

    def _split_turn(self) -> tuple[str, str]:
        """The tokenizer's chat template before and after the content of a user's turn, up to the model's answer.

        Raises:
            WeightsError: the template fails, or leaves out the content.
        """
        messages = [{"role": "user", "content": _PLACEHOLDER}]
        try:
            turn = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError, ValueError) as error:
            raise WeightsError(
                f"the chat template of {self.config.name!r} cannot be used ({error}); use llm.prompt: plain"
            ) from None
        before, found, after = turn.partition(_PLACEHOLDER)
        if not found:
            raise WeightsError(
                f"the chat template of {self.config.name!r} leaves out the user's text; use llm.prompt: plain"
            )
        return before, after

    def _first_token(self) -> str:
        """The special token with which the tokenizer begins every text, if any."""
        first = self.tokenizer.bos_token
        is_added = first is not None and self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]
        return str(first) if is_added else ""

    def prepend_prefix(self, visual: VisualTokens) -> VisualTokens:
        """Visual tokens (B, T, D) -> prefix tokens and visual tokens (B, O + T, D)."""
        prefix = self.embed(self.prefix_ids).to(visual.embeds.dtype).expand(len(visual.embeds), -1, -1)
        return VisualTokens(
            torch.cat([prefix, visual.embeds], dim=1), F.pad(visual.mask, (len(self.prefix_ids), 0), value=True)
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
            attention: (B, Q, K) bool, True where the query (row) may attend to the key (column).
            positions: (B, Q) position ids of the queries.
            cache: keys and values of earlier tokens; those of the queries are added to it.
            key_positions: (B, K) position ids of the keys; None if they are the queries.
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

    def selected_states(self, packed: PackedSequence, is_selected: Tensor) -> Tensor:
        """Last hidden states of the tokens in is_selected (B, Q) bool, in row-major order: (M, D).

        While gradients are recorded, `tiny` computes its last layer for these tokens only. Without gradients, as in
        scoring and in measured costs, it runs like any other LLM.
        """
        if self.config.name == "tiny" and torch.is_grad_enabled():
            return selected_states(self.model.get_decoder(), packed, is_selected)
        return self(packed.embeds, packed.attention, packed.positions)[is_selected]

    def _masks(self, attention: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The attention mask (B, 1, Q, K) for the model's layers, or one per type of layer.

        Sliding windows are measured in position ids, as for a single expression. Measured in sequence indices, the
        image would fall out of the window of expressions that are packed after others.
        """
        config = self._shape
        is_sliding = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
        window = getattr(config, "sliding_window", None)
        if window is None or (is_sliding and not any(is_sliding)):
            return self._as_layer_mask(attention)
        near = (positions[:, :, None] - key_positions[:, None]).abs() < window
        if not is_sliding:
            return self._as_layer_mask(attention & near)
        return {
            "full_attention": self._as_layer_mask(attention),
            "sliding_attention": self._as_layer_mask(attention & near),
        }

    def _as_layer_mask(self, attention: Tensor) -> Tensor:
        """(B, Q, K) bool -> (B, 1, Q, K); eager attention takes a float mask that is added to the scores."""
        mask = attention.unsqueeze(1)
        if self.model.config._attn_implementation != "eager":
            return mask
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)

    def answer_logits(self, states: Tensor) -> Tensor:
        """states (M, D) -> (M, V + 2): the vocabulary, then [SEG], then [REJ]."""
        vocabulary = self.model.get_output_embeddings()(states)
        logits = torch.cat([vocabulary, states @ self.answers.to(states.dtype).T], dim=-1)
        # Cohere multiplies by a scale, Granite divides by one; other families have neither.
        scale = (getattr(self._shape, "logit_scale", None) or 1.0) / (
            getattr(self._shape, "logits_scaling", None) or 1.0
        )
        logits = logits * scale
        cap = getattr(self._shape, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()

    def with_own_seg(self, text: Tensor, mask: Tensor, is_expression: Tensor) -> tuple[Tensor, Tensor]:
        """Append the trained [SEG] embedding to every expression.

        Args:
            text: (B, E, L, D) embedded prompts, padded on the right.
            mask: (B, E, L) bool.
            is_expression: (B, E) bool, False for questions and padding, which stay as they are.

        Returns:
            Text and mask of length L + 1.
        """
        assert self.own_seg is not None, "llm.seg_state is not 'own'"
        text, longer = F.pad(text, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        length = mask.sum(dim=-1, keepdim=True)
        is_seg = (torch.arange(longer.shape[-1], device=mask.device) == length) & is_expression[..., None]
        return torch.where(is_seg[..., None], self.own_seg.to(text.dtype), text), longer | is_seg


def build_llm(config: LLMConfig, words: Iterable[str], base: torch.dtype = torch.float32) -> LanguageModel:
    """Build `tiny` from scratch, or load a pretrained causal LM by name, hub id or folder and add its LoRA.

    Args:
        words: the vocabulary of `tiny`; a pretrained LLM has its own.
        base: dtype of a pretrained LLM's frozen parameters; trainable ones are float32. Under bfloat16 autocast a
            bfloat16 base gives the same results with half the memory.

    Raises:
        WeightsError: the pretrained weights are not found or do not load strictly, have fewer layers than `llm.layers`,
            no layers named in `llm.lora.targets` or no chat template, do not support gradient checkpointing, or cannot
            be quantised on this machine.
    """
    if config.name == "tiny":
        return LanguageModel(*build_tiny(config, words), config, weights=None)
    record = resolve(config.name)
    return LanguageModel(*load_pretrained(record, config, base), config, record)
