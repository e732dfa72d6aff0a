"""A pretrained LLM of any family that transformers loads: strictly, shortened where asked, frozen but for its LoRA."""

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
"""Kinds of layers that see of what is packed what a mask lets them see."""


def load_pretrained(
    record: WeightsRecord, config: LLMConfig, base: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal LM and its tokenizer; of the LM only what its LoRA adds learns.

    Args:
        base: in which it is held, but for what learns, which is in float32.

    Raises:
        WeightsError: as `build_llm` says.
    """
    model, tokenizer = _load(record, config, base)
    if config.layers is not None:
        _keep_first(model, config.layers, record.name)
    model.requires_grad_(False)
    if config.lora is not None:
        _add_lora(model, config.lora, record.name)
    return model, tokenizer


def _load(
    record: WeightsRecord, config: LLMConfig, base: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal LM and its tokenizer, with no weight missing and none left over."""
    folder = as_folder(record, gguf.VERSION, partial(gguf.convert, name=record.name))
    with readable(record.name):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        shape: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.eos_token is None:
        raise WeightsError(
            f"the tokenizer of {record.name!r} has no word that ends a text (eos_token); name another LLM"
        )
    if config.prompt == "chat" and not tokenizer.chat_template:
        raise WeightsError(f"the tokenizer of {record.name!r} has no chat template; use llm.prompt: plain")
    # Fused attention cannot cap its scores.
    is_capped = getattr(shape.get_text_config(), "attn_logit_softcapping", None) is not None
    settings: dict[str, Any] = {"attn_implementation": "eager" if is_capped else "sdpa", "dtype": base}
    if config.quantization == "4bit":
        settings["quantization_config"] = _four_bits()
    model = load_strictly(AutoModelForCausalLM, folder, record.name, **settings)
    _refuse_memory(model, record.name)
    _settle_words(model, tokenizer, record.name)
    return model, tokenizer


def _refuse_memory(model: PreTrainedModel, name: str) -> None:
    """Raises where a layer reads by another way than the attention that keeps packed expressions apart."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - ATTENTION
    if kinds or model._is_stateful:
        what = ", ".join(sorted(kinds)) or "a state"
        raise WeightsError(
            f"{name!r} reads by {what}, through which expressions packed behind one image would see one another; name "
            "an LLM of attention only"
        )


def _settle_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises where the model has no word that ends a text, which is also what fills one up where nothing else does."""
    table: Any = model.get_input_embeddings()
    known = range(table.weight.shape[0])
    if tokenizer.eos_token_id not in known:
        raise WeightsError(
            f"the tokenizer of {name!r} ends a text with {tokenizer.eos_token!r}, word {tokenizer.eos_token_id}, and "
            f"the model knows {len(known)}; mend its tokenizer_config.json"
        )
    if tokenizer.pad_token is None or tokenizer.pad_token_id not in known:
        tokenizer.pad_token = tokenizer.eos_token


def _keep_first(model: PreTrainedModel, count: int, name: str) -> None:
    """Leaves out the layers behind these; what they make goes to the final norm.

    Source: SmolVLA, https://arxiv.org/abs/2506.01844 (the first half of SmolLM2's layers reads images for a policy).

    Raises:
        WeightsError: there are not so many.
    """
    decoder: Any = model.get_decoder()
    if not hasattr(decoder, "layers"):
        raise WeightsError(f"llm.layers is {count}, and what layers {name!r} has is not known; leave llm.layers out")
    if count > len(decoder.layers):
        raise WeightsError(f"llm.layers is {count}, and {name!r} has {len(decoder.layers)}; keep at most so many")
    decoder.layers = decoder.layers[:count]
    shape: Any = decoder.config
    shape.num_hidden_layers = count
    if getattr(shape, "layer_types", None) is not None:
        shape.layer_types = shape.layer_types[:count]


def _four_bits() -> BitsAndBytesConfig:
    """QLoRA's, https://arxiv.org/abs/2305.14314: NormalFloat, its constants quantised again, products in bfloat16."""
    if not torch.cuda.is_available():
        raise WeightsError("llm.quantization: 4bit needs a CUDA device, and there is none; leave it out")
    if find_spec("bitsandbytes") is None:
        raise WeightsError("llm.quantization: 4bit needs bitsandbytes; pip install bitsandbytes, or leave it out")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _add_lora(model: PreTrainedModel, config: LoRAConfig, name: str) -> None:
    """Put the adapters into the model's own layers; they are what `requires_grad` afterwards.

    Raises:
        WeightsError: a target is no linear layer of the model.
    """
    linear = {path.rpartition(".")[2] for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    unknown = set(config.targets) - linear
    if unknown:
        raise WeightsError(
            f"llm.lora.targets names {', '.join(sorted(unknown))}, and {name!r} has no linear layers of that name; "
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
