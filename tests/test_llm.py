"""A pretrained LLM from a transformers folder: strict loading, and LoRA without changes to other weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.errors import WeightsError
from harness.model.config import LLMConfig, LoRAConfig
from harness.model.llm import gguf
from harness.model.llm.language_model import LanguageModel, build_llm
from harness.model.weights.resolution import resolve

WORDS = ["[PAD]", "[UNK]", "the", "red", "square", "."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(llama).save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[PAD]"
    )
    wrapped.save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, lora: LoRAConfig | None = None) -> LanguageModel:
    return build_llm(LLMConfig(name=str(folder), lora=lora, template="{expression} ."), words=())


def change(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})


def test_a_folder_loads_with_its_own_weights_and_vocabulary(folder: Path) -> None:
    llm = load(folder)
    expected = LlamaForCausalLM.from_pretrained(folder).get_decoder()
    prompts = llm.prompts([llm.format_prompt("the red square")])
    assert prompts.ids.tolist() == [[2, 3, 4, 5]]
    length = prompts.ids.shape[1]
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    states = llm(llm.embed(prompts.ids), causal, torch.arange(length)[None])
    torch.testing.assert_close(states, expected(input_ids=prompts.ids).last_hidden_state)


@pytest.mark.slow
def test_a_gguf_file_is_converted_once_and_equals_transformers(tmp_path: Path, monkeypatch) -> None:
    record = resolve("smollm2-135m")
    assert record.folder is not None
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    config = LLMConfig(name=str(record.folder / str(record.file)), lora=LoRAConfig(), template="{expression}")
    build_llm(config, words=())
    monkeypatch.setattr(gguf, "convert", lambda *_, **__: pytest.fail("converted again"))
    llm = build_llm(config, words=())
    settings = {"gguf_file": record.file, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    expected = AutoModelForCausalLM.from_pretrained(record.folder, **settings).get_decoder()
    ids = llm.prompts(["the red square left of two circles"]).ids
    length = ids.shape[1]
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    states = llm(llm.embed(ids), causal, torch.arange(length)[None])
    torch.testing.assert_close(states, expected(input_ids=ids).last_hidden_state, rtol=1e-3, atol=1e-3)


def test_only_adapters_and_the_two_answer_rows_are_trainable(folder: Path) -> None:
    llm = load(folder, LoRAConfig(rank=2, targets=("q_proj", "v_proj")))
    trainable = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    adapters = trainable - {"answers"}
    assert "answers" in trainable
    assert len(adapters) == 2 * 2 * 2  # two layers, two targets, two matrices each
    assert all("lora_" in name for name in adapters)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    change(folder, **{"model.norm.weight": torch.ones(31)})
    with pytest.raises(WeightsError, match=r"do not match a llama: of another shape: model\.norm\.weight; download"):
        load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_one_sentence(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b'{"')
    with pytest.raises(WeightsError, match="cannot be read") as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_an_unexpected_weight_is_refused(folder: Path) -> None:
    change(folder, **{"model.norm.scale": torch.ones(32)})
    with pytest.raises(WeightsError, match=r"unexpected: model\.norm\.scale"):
        load(folder)


def test_a_bfloat16_base_equals_a_float32_base_under_autocast(folder: Path) -> None:
    config = LLMConfig(name=str(folder), lora=LoRAConfig(rank=2, targets=("q_proj",)), template="{expression} .")
    states = []
    for base in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        llm = build_llm(config, words=(), base=base).eval()
        assert llm.model.get_input_embeddings().weight.dtype == base
        assert {p.dtype for p in llm.parameters() if p.requires_grad} == {torch.float32}
        ids = llm.prompts([llm.format_prompt("the red square")]).ids
        causal = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = llm(llm.embed(ids), causal, torch.arange(ids.shape[1])[None])
            states.append(llm.answer_logits(hidden).float())
    assert (states[0] - states[1]).norm() < 0.05 * states[0].norm()
