"""`tiny`: an LLM of a few layers that learns from nothing, for studies that have no pretrained one."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from harness.backbone.config import LLMConfig


def build_tiny(config: LLMConfig, words: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The LLM and a tokenizer that knows these words and those of the prompt's template."""
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
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[PAD]"
    )
    return model, wrapped


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
