"""Loads a pretrained causal LM of any transformers family strictly, keeps its first layers, and adds a LoRA."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.errors import WeightsError
from harness.model.config import LLMConfig, LoRAConfig
from harness.model.llm import gguf
from harness.model.weights.resolution import WeightsRecord, as_folder
from harness.model.weights.strict_loading import load_strictly, readable

ATTENTION = {"full_attention", "sliding_attention"}
"""Layer types that respect an attention mask, which packed expressions require."""


def load_pretrained(
    record: WeightsRecord, config: LLMConfig, base: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM, frozen except for its LoRA, and its tokenizer.

    Args:
        base: dtype of the frozen parameters; trainable ones are float32.

    Raises:
        WeightsError: as for `build_llm`.
    """
    model, tokenizer = _load(record, config, base)
    if config.layers is not None:
        _keep_first(model, config.layers, record.name)
    model.requires_grad_(False)
    if config.lora is not None:
        _add_lora(model, config.lora, record.name)
    if config.gradient_checkpointing:
        _checkpoint_gradients(model, record.name)
    return model, tokenizer


def _load(
    record: WeightsRecord, config: LLMConfig, base: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the causal LM strictly, and its tokenizer."""
    folder = as_folder(record, gguf.VERSION, partial(gguf.convert, name=record.name))
    with readable(record.name):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        shape: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.eos_token is None:
        raise WeightsError(f"the tokenizer of {record.name!r} has no eos_token; use another LLM")
    if config.prompt == "chat" and not tokenizer.chat_template:
        raise WeightsError(f"the tokenizer of {record.name!r} has no chat template; use llm.prompt: plain")
    # Fused attention does not support softcapping.
    is_capped = getattr(shape.get_text_config(), "attn_logit_softcapping", None) is not None
    settings: dict[str, Any] = {"attn_implementation": "eager" if is_capped else "sdpa", "dtype": base}
    if config.quantization == "4bit":
        settings["quantization_config"] = _four_bits()
    model = load_strictly(AutoModelForCausalLM, folder, record.name, **settings)
    _check_attention_only(model, record.name)
    _check_special_tokens(model, tokenizer, record.name)
    return model, tokenizer


def _check_attention_only(model: PreTrainedModel, name: str) -> None:
    """Raise WeightsError if a layer is not attention; an attention mask could not separate packed expressions in it."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - ATTENTION
    if kinds or model._is_stateful:
        found = ", ".join(sorted(kinds)) or "recurrent state"
        raise WeightsError(
            f"{name!r} has layers with {found}, through which expressions packed into one sequence would affect one "
            "another; use an LLM with attention layers only"
        )


def _check_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise WeightsError if the model has no embedding of eos_token, which also replaces a missing pad_token."""
    table: Any = model.get_input_embeddings()
    known = range(table.weight.shape[0])
    if tokenizer.eos_token_id not in known:
        raise WeightsError(
            f"the eos_token {tokenizer.eos_token!r} of {name!r} has id {tokenizer.eos_token_id}, but the model has "
            f"{len(known)} token embeddings; correct its tokenizer_config.json"
        )
    if tokenizer.pad_token is None or tokenizer.pad_token_id not in known:
        tokenizer.pad_token = tokenizer.eos_token


def _keep_first(model: PreTrainedModel, count: int, name: str) -> None:
    """Remove all layers but the first `count`, whose output goes to the final norm.

    Source: SmolVLA, https://arxiv.org/abs/2506.01844 (uses the first half of SmolLM2's layers).

    Raises:
        WeightsError: the model has fewer layers.
    """
    decoder: Any = model.get_decoder()
    if not hasattr(decoder, "layers"):
        raise WeightsError(f"llm.layers={count}, but the decoder of {name!r} has no `layers`; remove llm.layers")
    if count > len(decoder.layers):
        raise WeightsError(
            f"llm.layers={count}, but {name!r} has {len(decoder.layers)} layers; use at most {len(decoder.layers)}"
        )
    decoder.layers = decoder.layers[:count]
    shape: Any = decoder.config
    shape.num_hidden_layers = count
    if getattr(shape, "layer_types", None) is not None:
        shape.layer_types = shape.layer_types[:count]


def _four_bits() -> BitsAndBytesConfig:
    """QLoRA's settings, https://arxiv.org/abs/2305.14314: NF4, double quantisation, bfloat16 products."""
    if not torch.cuda.is_available():
        raise WeightsError("llm.quantization: 4bit requires a CUDA device, and none is available; remove it")
    if find_spec("bitsandbytes") is None:
        raise WeightsError("llm.quantization: 4bit requires bitsandbytes; pip install bitsandbytes, or remove it")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _add_lora(model: PreTrainedModel, config: LoRAConfig, name: str) -> None:
    """Add LoRA to the model's layers in place; afterwards only its parameters require gradients.

    Raises:
        WeightsError: a target is not a linear layer of the model.
    """
    linear = {path.rpartition(".")[2] for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    unknown = set(config.targets) - linear
    if unknown:
        raise WeightsError(
            f"llm.lora.targets: {name!r} has no linear layers named {', '.join(sorted(unknown))}; "
            f"use {', '.join(sorted(linear - {'lm_head'}))}"
        )
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


def _checkpoint_gradients(model: PreTrainedModel, name: str) -> None:
    """Recompute the activations of each decoder layer in the backward pass, in training mode only.

    Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174.

    Raises:
        WeightsError: the family does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise WeightsError(
            f"llm.gradient_checkpointing: the layers of {name!r} ({type(model).__name__}) do not support it; remove it"
        )
    model.activation_checkpointing_enable({"use_reentrant": False})
    # transformers makes the token embeddings require gradients, which only reentrant checkpointing needs.
    model.disable_input_require_grads()
