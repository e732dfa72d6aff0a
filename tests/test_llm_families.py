"""Every family of causal LMs: loaded strictly, and packed expressions read as the family reads one alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from harness.backbone.config import LLMConfig, LoRAConfig
from harness.backbone.llm import LanguageModel, build_llm
from harness.backbone.packing import pack
from harness.errors import WeightsError
from projectors import VisualTokens

WORDS = ["[PAD]", "[UNK]", "[BOS]", "the", "red", "square", "blue", "star", ".", "user", "assistant"]
WIDTH, VISUAL = 32, 6
SHAPE: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
BUILT: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen2_sliding": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **SLIDING, use_sliding_window=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SHAPE, sliding_window=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, **SLIDING, head_dim=16, attn_logit_softcapping=2.0)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **SLIDING, head_dim=16)),
}
TEXTS = ["the red square", "the star", "the blue blue star"]
every_family = pytest.mark.parametrize("kind", BUILT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random checkpoint of each family with a tokenizer that begins with BOS and knows a chat."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]", bos_token="[BOS]")
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    found = {}
    for kind, build in BUILT.items():
        torch.manual_seed(0)
        model = build().eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        found[kind] = tmp_path_factory.mktemp("llms") / kind
        model.save_pretrained(found[kind])
        tokenizer.save_pretrained(found[kind])
    return found


def load(folder: Path, **settings: Any) -> LanguageModel:
    torch.manual_seed(1)
    return build_llm(LLMConfig(name=str(folder), template="{expression} .", **settings), words=())


def visual_tokens() -> VisualTokens:
    return VisualTokens.dense(torch.randn(1, VISUAL, WIDTH, generator=torch.Generator().manual_seed(0)))


def read_packed(llm: LanguageModel, texts: list[str]) -> list[Tensor]:
    """The states of each expression's tokens, all packed behind one image."""
    prompts = llm.prompts(texts)
    packed = pack(visual_tokens(), llm.embed(prompts.ids)[None], prompts.mask[None], bidirectional=False)
    states = llm(packed.embeds, packed.attention, packed.positions)[0, VISUAL:].unflatten(0, prompts.mask.shape)
    return [row[mask] for row, mask in zip(states, prompts.mask, strict=True)]


@every_family
@torch.no_grad()
def test_packed_expressions_are_read_as_the_family_reads_one_alone(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind]).eval()
    softcapped = "eager" if kind == "gemma2" else "sdpa"
    model: Any = AutoModelForCausalLM.from_pretrained(folders[kind], attn_implementation=softcapped).eval()
    for text, states in zip(TEXTS, read_packed(llm, TEXTS), strict=True):
        ids = llm.prompts([text]).ids
        words = model.get_input_embeddings()(ids)
        expected = model(inputs_embeds=torch.cat([visual_tokens().embeds, words], dim=1), output_hidden_states=True)
        torch.testing.assert_close(states, expected.hidden_states[-1][0, VISUAL:], atol=1e-4, rtol=1e-4)
        logits = llm.answer_logits(states)
        assert logits.shape[-1] == len(WORDS) + 2
        torch.testing.assert_close(logits[:, : len(WORDS)], expected.logits[0, VISUAL:], atol=1e-4, rtol=1e-4)


@every_family
def test_only_adapters_and_answers_learn(folders: dict[str, Path], kind: str) -> None:
    targets = ("qkv_proj",) if kind == "phi3" else ("q_proj", "v_proj")
    llm = load(folders[kind], lora=LoRAConfig(rank=2, targets=targets), seg_state="own")
    states = torch.cat(read_packed(llm, TEXTS))
    llm.answer_logits(states).square().sum().backward()
    learning = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {"answers", "own_seg"}
    assert {name for name, parameter in llm.named_parameters() if parameter.grad is not None} == learning - {"own_seg"}


@every_family
def test_a_weight_that_is_missing_is_refused(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    for path in folders[kind].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: model\.norm\.weight"):
        load(tmp_path)


def test_targets_that_match_nothing_are_refused_with_those_that_would(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"names q_proj, v_proj, .* use down_proj, gate_up_proj, o_proj, qkv_proj"):
        load(folders["phi3"], lora=LoRAConfig(rank=2))


def test_a_chat_is_what_the_tokenizers_own_template_writes(folders: dict[str, Path]) -> None:
    for prompt, expected in {"plain": "[BOS] the star .", "chat": "[BOS] user the star . assistant"}.items():
        llm = load(folders["llama"], prompt=prompt)
        assert llm.tokenizer.batch_decode(llm.prompts(["the star"]).ids) == [expected]


def test_a_tokenizer_without_a_chat_template_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["llama"].iterdir():
        if "chat_template" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=r"has no chat template; use llm\.prompt: plain"):
        load(tmp_path, prompt="chat")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the sentence is for machines without CUDA")
def test_four_bits_without_cuda_are_refused_in_a_sentence(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match="quantization: 4bit needs a CUDA device"):
        load(folders["llama"], quantization="4bit")


@torch.no_grad()
def test_own_seg_is_read_behind_the_expression_as_one_more_word(folders: dict[str, Path]) -> None:
    llm = load(folders["llama"], seg_state="own").eval()
    model: Any = AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    prompts = llm.prompts(TEXTS)
    words, mask = llm.with_own_seg(llm.embed(prompts.ids)[None], prompts.mask[None])
    packed = pack(visual_tokens(), words, mask, bidirectional=False)
    states = llm(packed.embeds, packed.attention, packed.positions)[0, packed.last[0]]
    assert llm.own_seg is not None
    for text, state in zip(TEXTS, states, strict=True):
        embeds = [
            visual_tokens().embeds,
            model.get_input_embeddings()(llm.prompts([text]).ids),
            llm.own_seg[None, None],
        ]
        expected = model.model(inputs_embeds=torch.cat(embeds, dim=1)).last_hidden_state[0, -1]
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)
