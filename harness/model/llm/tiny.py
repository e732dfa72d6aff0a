"""`tiny`: a small LLM that is trained from scratch, for studies without a pretrained one."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from harness.model.config import LLMConfig


def build_tiny(config: LLMConfig, words: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The LLM, with random weights, and a tokenizer over these words and those of the prompt template."""
    template_words = config.template.replace("{expression}", "").split()
    tokenizer = word_tokenizer({*words, *template_words})
    assert config.width is not None
    assert config.layers is not None
    assert config.heads is not None
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
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
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = AutoModelForCausalLM.from_config(llama, attn_implementation="sdpa")
    table = RunningEmbedding(len(tokenizer), config.width)
    table.weight = model.get_input_embeddings().weight
    model.set_input_embeddings(table)
    return model, tokenizer


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer with one token per word, after [PAD] with id 0 and [UNK] with id 1."""
    vocabulary = ["[PAD]", "[UNK]", *sorted({*words})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[PAD]")


class RunningEmbedding(nn.Embedding):
    """Token embedding plus the sum of the embeddings up to that token, so that each state depends on the whole prompt.

    Without it, a small LLM trained from scratch spends most of its steps on learning to attend to earlier words; until
    then it attends to visual tokens according to the prompt's last word only.

    Source: average attention, https://arxiv.org/abs/1805.00631, a layer that averages all earlier positions.
    Differs from the paper: a sum instead of a mean, of embeddings instead of hidden states.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """ids (..., L) -> embeddings (..., L, D)."""
        words = super().forward(ids)
        return words + words.cumsum(dim=-2)
