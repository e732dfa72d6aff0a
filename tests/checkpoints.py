"""Small random checkpoints of every family, written by transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

PATCH, WIDTH = 14, 32
_VIT: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": PATCH,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LLM: dict[str, Any] = {
    **_TEXT, "hidden_size": 24, "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]},
}  # fmt: skip
_NAFLEX = {key: value for key, value in _VIT.items() if key != "image_size"} | {"num_patches": 16}
_QWEN2 = {"embed_dim": WIDTH, "hidden_size": 24, "depth": 2, "num_heads": 2, "patch_size": PATCH, "mlp_ratio": 2}
_QWEN25 = {
    "hidden_size": WIDTH, "out_hidden_size": 24, "intermediate_size": 40, "depth": 2, "num_heads": 2,
    "patch_size": PATCH, "window_size": 28, "fullatt_block_indexes": [1],
}  # fmt: skip

WHOLE: dict[str, Callable[[], PreTrainedModel]] = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**_VIT)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_VIT, num_register_tokens=3)),
    "dinov3_vit": lambda: DINOv3ViTModel(DINOv3ViTConfig(**_VIT, num_register_tokens=3)),
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=_VIT, text_config=_TEXT, projection_dim=8)),
    "clip_vision_model": lambda: CLIPVisionModel(CLIPVisionConfig(**_VIT)),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=_VIT, text_config=_TEXT)),
    "siglip_vision_model": lambda: SiglipVisionModel(SiglipVisionConfig(**_VIT)),
}
TILED: dict[str, Callable[[], PreTrainedModel]] = {
    "internvl_vision": lambda: InternVLVisionModel(InternVLVisionConfig(**_VIT)),
}
NATIVE: dict[str, Callable[[], PreTrainedModel]] = {
    "siglip2": lambda: Siglip2Model(Siglip2Config(vision_config=_NAFLEX, text_config=_TEXT)),
    "qwen2_vl": lambda: Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=_QWEN2, text_config=_LLM)),
    "qwen2_5_vl": lambda: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=_QWEN25, text_config=_LLM)),
}
ENCODERS = WHOLE | TILED | NATIVE
"""By `model_type`: encoders of whole frames, of tiles, and of native resolution."""

WORDS = ["[PAD]", "[UNK]", "[BOS]", "the", "red", "square", "blue", "star", ".", "user", "assistant"]
_SHAPE: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
LLMS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE, tie_word_embeddings=True)),
    "qwen2_sliding": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE, **_SLIDING, use_sliding_window=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=16)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SHAPE, sliding_window=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SHAPE, **_SLIDING, head_dim=16, attn_logit_softcapping=2.0)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_SHAPE, **_SLIDING, head_dim=16)),
}


def write_encoder(kind: str, folder: Path) -> None:
    """Write a vision encoder with patches of 14 px, width 32 and two blocks."""
    _seeded(ENCODERS[kind]).save_pretrained(folder)


def write_llm(kind: str, folder: Path) -> None:
    """Write a causal LM of width 32 with two layers, and a tokenizer that adds BOS and has a chat template."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]", bos_token="[BOS]")
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    _seeded(LLMS[kind]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _seeded(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Build a model with seeded weights, none of which is zero or one, because such values can hide mistakes."""
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model
