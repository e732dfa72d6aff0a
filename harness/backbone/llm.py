"""The LLM: reads visual tokens and expressions, answers [SEG] or [REJ].

Both answers are rows of their own beside the pretrained vocabulary, so that only they are trained and no tokenizer
changes. The state that *predicts* the answer is what the mask decoder is prompted with.

Source: LISA, https://arxiv.org/abs/2308.00692 ([SEG] as mask); GSVA, https://arxiv.org/abs/2312.10103 ([REJ]).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from harness.backbone.config import LLMConfig, LoRAConfig
from harness.backbone.strict import load_strictly
from harness.backbone.weights import WeightsRecord, resolve

SEG, REJ = 0, 1
"""Index of an answer among the two trained rows; in `answer_logits` they come after the vocabulary."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokenised prompts, padded on the right: ids (E, L) int64, mask (E, L) bool."""

    ids: Tensor
    mask: Tensor


class LanguageModel(nn.Module):
    """A causal LM of transformers, with two answer rows, reached through embeddings.

    Args:
        model: the causal LM; whether its parameters learn is decided by whoever builds it.
        tokenizer: its tokenizer.
        config: prompt template and how visual tokens attend to one another.
        weights: where the weights come from; None for a model trained from scratch.
    """

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
        head = model.get_output_embeddings().weight
        self.answers = nn.Parameter(torch.zeros(2, head.shape[1]).normal_(std=float(head.detach().float().std())))

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.model.config.hidden_size

    @property
    def vocabulary(self) -> int:
        """V, how many words the output layer knows, without the two answers."""
        return self.model.get_output_embeddings().weight.shape[0]

    def prompts(self, expressions: list[str]) -> Prompts:
        """The fixed template around each expression, tokenised and padded on the right."""
        texts = [self.config.template.format(expression=expression) for expression in expressions]
        encoded = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        return Prompts(encoded["input_ids"], encoded["attention_mask"].bool())

    def embed(self, ids: Tensor) -> Tensor:
        """ids (..., L) -> embeddings (..., L, D)."""
        return self.model.get_input_embeddings()(ids)

    def forward(self, embeds: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states.

        Args:
            embeds: (B, Q, D).
            attention: (B, Q, Q) bool, True where the query (row) may look at the key (column).
            positions: (B, Q) position ids.
        """
        decoder = self.model.get_decoder()
        output = decoder(
            inputs_embeds=embeds, attention_mask=attention.unsqueeze(1), position_ids=positions, use_cache=False
        )
        return output.last_hidden_state

    def answer_logits(self, states: Tensor) -> Tensor:
        """states (M, D) -> (M, V + 2): the vocabulary, then [SEG], then [REJ]."""
        words = self.model.get_output_embeddings()(states)
        return torch.cat([words, states @ self.answers.to(states.dtype).T], dim=-1)


def build_llm(config: LLMConfig, words: Iterable[str]) -> LanguageModel:
    """`tiny` from scratch over these words, or a pretrained causal LM by name, hub id or folder, with its LoRA.

    Args:
        words: what the training expressions are made of; a pretrained LLM brings its own vocabulary.

    Raises:
        WeightsError: the pretrained weights cannot be found or do not load strictly.
    """
    if config.name == "tiny":
        return _build_tiny(config, words)
    record = resolve(config.name)
    model, tokenizer = _load_pretrained(record)
    model.requires_grad_(False)
    if config.lora is not None:
        _add_lora(model, config.lora)
    return LanguageModel(model, tokenizer, config, record)


def _build_tiny(config: LLMConfig, words: Iterable[str]) -> LanguageModel:
    template_words = config.template.format(expression="").split()
    vocabulary = ["[PAD]", "[UNK]", *sorted({*words, *template_words})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert config.width is not None
    assert config.layers is not None
    assert config.heads is not None
    llama = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=config.width,
        intermediate_size=3 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=config.width**-0.5,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    model = AutoModelForCausalLM.from_config(llama, attn_implementation="sdpa")
    _look_near_first(model)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    return LanguageModel(model, wrapped, config, weights=None)


def _look_near_first(model: PreTrainedModel) -> None:
    """Half of the heads begin by looking at the words just before, so that a prompt's last state knows its words.

    Queries and keys that share a bias attend, under rotary positions, the more the nearer they are. Without it a state
    is at first the mean of everything before it, forty visual tokens and four words, and the words drown.
    """
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            with torch.no_grad():
                projection.bias[: projection.bias.shape[0] // (2 * head_dim) * head_dim] = 1.0


def _load_pretrained(record: WeightsRecord) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal LM and its tokenizer, in float32, with no weight missing and none left over."""
    assert record.folder is not None
    model = load_strictly(
        AutoModelForCausalLM, record.folder, record.name, gguf_file=record.file, attn_implementation="sdpa"
    )
    tokenizer = AutoTokenizer.from_pretrained(record.folder, gguf_file=record.file)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _add_lora(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Put the adapters into the model's own layers; they are what `requires_grad` afterwards."""
    get_peft_model(
        model,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets),
            task_type="CAUSAL_LM",
        ),
    )
