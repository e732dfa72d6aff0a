"""Every family of causal LMs: strict loading, and packed expressions equal single ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from harness.errors import WeightsError
from harness.model.config import LLMConfig, LoRAConfig
from harness.model.llm.language_model import LanguageModel, build_llm
from harness.model.llm.packing import pack
from projectors import VisualTokens
from tests.checkpoints import LLMS, WIDTH, WORDS, write_llm

VISUAL = 6
TEXTS = ["the red square", "the star", "the blue blue star"]
every_family = pytest.mark.parametrize("kind", LLMS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random checkpoint of each family with a tokenizer that adds BOS and has a chat template."""
    found = {kind: tmp_path_factory.mktemp("llms") / kind for kind in LLMS}
    for kind, folder in found.items():
        write_llm(kind, folder)
    return found


def load(folder: Path, **settings: Any) -> LanguageModel:
    torch.manual_seed(1)
    return build_llm(LLMConfig(name=str(folder), template="{expression} .", **settings), words=())


def visual_tokens() -> VisualTokens:
    return VisualTokens.dense(torch.randn(1, VISUAL, WIDTH, generator=torch.Generator().manual_seed(0)))


def packed_states(llm: LanguageModel, texts: list[str]) -> list[Tensor]:
    """The hidden states of each expression's tokens, all packed after one image."""
    prompts = llm.prompts([llm.format_prompt(text) for text in texts])
    packed = pack(visual_tokens(), llm.embed(prompts.ids)[None], prompts.mask[None], bidirectional=False)
    states = llm(packed.embeds, packed.attention, packed.positions)[0, VISUAL:]
    return list(states.split(prompts.mask.sum(-1).tolist()))


@every_family
@torch.no_grad()
def test_packed_expressions_have_the_states_of_single_ones(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind]).eval()
    softcapped = "eager" if kind == "gemma2" else "sdpa"
    model: Any = AutoModelForCausalLM.from_pretrained(folders[kind], attn_implementation=softcapped).eval()
    for text, states in zip(TEXTS, packed_states(llm, TEXTS), strict=True):
        ids = llm.prompts([llm.format_prompt(text)]).ids
        words = model.get_input_embeddings()(ids)
        expected = model(inputs_embeds=torch.cat([visual_tokens().embeds, words], dim=1), output_hidden_states=True)
        torch.testing.assert_close(states, expected.hidden_states[-1][0, VISUAL:], atol=1e-4, rtol=1e-4)
        logits = llm.answer_logits(states)
        assert logits.shape[-1] == len(WORDS) + 2
        torch.testing.assert_close(logits[:, : len(WORDS)], expected.logits[0, VISUAL:], atol=1e-4, rtol=1e-4)


@every_family
@torch.no_grad()
def test_the_first_layers_are_kept(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind], layers=1).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(folders[kind], attn_implementation="eager").eval()
    assert len(model.get_decoder().layers) > 1
    for text, states in zip(TEXTS, packed_states(llm, TEXTS), strict=True):
        words = model.get_input_embeddings()(llm.prompts([llm.format_prompt(text)]).ids)
        output = model(inputs_embeds=torch.cat([visual_tokens().embeds, words], dim=1), output_hidden_states=True)
        expected = model.get_decoder().norm(output.hidden_states[1])[0, VISUAL:]
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_more_layers_than_the_model_has_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"llm\.layers=99, but .* has (\d+) layers; use at most \1"):
        load(folders["llama"], layers=99)


@every_family
def test_only_adapters_and_answer_rows_are_trainable(folders: dict[str, Path], kind: str) -> None:
    targets = ("qkv_proj",) if kind == "phi3" else ("q_proj", "v_proj")
    llm = load(folders[kind], lora=LoRAConfig(rank=2, targets=targets), seg_state="own")
    states = torch.cat(packed_states(llm, TEXTS))
    llm.answer_logits(states).square().sum().backward()
    trainable = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == {"answers", "own_seg"}
    assert {name for name, parameter in llm.named_parameters() if parameter.grad is not None} == trainable - {"own_seg"}


@every_family
def test_a_missing_weight_is_refused(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    for path in folders[kind].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: model\.norm\.weight"):
        load(tmp_path)


def test_unknown_targets_are_refused_with_the_known_ones(folders: dict[str, Path]) -> None:
    with pytest.raises(
        WeightsError, match=r"no linear layers named q_proj, v_proj; use down_proj, gate_up_proj, o_proj, qkv_proj"
    ):
        load(folders["phi3"], lora=LoRAConfig(rank=2))


@torch.no_grad()
def test_visual_tokens_stand_between_prefix_and_prompt(folders: dict[str, Path]) -> None:
    for prompt, prefix, suffixed in (
        ("plain", "[BOS]", "the star ."),
        ("chat", "[BOS] user", "the star . assistant"),
    ):
        llm = load(folders["llama"], prompt=prompt)
        assert llm.tokenizer.decode(llm.prefix_ids) == prefix
        assert llm.tokenizer.batch_decode(llm.prompts([llm.format_prompt("the star")]).ids) == [suffixed]
        prefixed = llm.prepend_prefix(visual_tokens())
        assert prefixed.mask.all()
        torch.testing.assert_close(prefixed.embeds[0, : len(llm.prefix_ids)], llm.embed(llm.prefix_ids))
        torch.testing.assert_close(prefixed.embeds[0, len(llm.prefix_ids) :], visual_tokens().embeds[0])


def test_a_tokenizer_without_a_chat_template_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["llama"].iterdir():
        if "chat_template" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=r"has no chat template; use llm\.prompt: plain"):
        load(tmp_path, prompt="chat")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is raised on machines without CUDA only")
def test_four_bits_without_cuda_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match="quantization: 4bit requires a CUDA device"):
        load(folders["llama"], quantization="4bit")


@torch.no_grad()
def test_own_seg_is_appended_to_the_expression_as_a_token(folders: dict[str, Path]) -> None:
    llm = load(folders["llama"], seg_state="own").eval()
    model: Any = AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    prompts = llm.prompts([llm.format_prompt(text) for text in TEXTS])
    is_expression = torch.ones(1, len(TEXTS), dtype=torch.bool)
    text, mask = llm.with_own_seg(llm.embed(prompts.ids)[None], prompts.mask[None], is_expression)
    packed = pack(visual_tokens(), text, mask, bidirectional=False)
    states = llm(packed.embeds, packed.attention, packed.positions)[0, packed.first[0] + prompts.mask.sum(-1)]
    assert llm.own_seg is not None
    for text, state in zip(TEXTS, states, strict=True):
        embeds = [
            visual_tokens().embeds,
            model.get_input_embeddings()(llm.prompts([llm.format_prompt(text)]).ids),
            llm.own_seg[None, None],
        ]
        expected = model.model(inputs_embeds=torch.cat(embeds, dim=1)).last_hidden_state[0, -1]
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


@every_family
@torch.no_grad()
def test_tokens_processed_one_by_one_with_a_cache_equal_all_at_once(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind]).eval()
    embeds = visual_tokens().embeds
    length = embeds.shape[1]
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    positions = torch.arange(length)[None]
    whole, cache, known = llm(embeds, causal, positions), DynamicCache(), length // 2
    states = [llm(embeds[:, :known], causal[:, :known, :known], positions[:, :known], cache)]
    for step in range(known, length):
        current = slice(step, step + 1)
        keys = positions[:, : step + 1]
        states.append(llm(embeds[:, current], causal[:, current, : step + 1], positions[:, current], cache, keys))
    torch.testing.assert_close(torch.cat(states, dim=1), whole, atol=1e-4, rtol=1e-4)


def edited(folder: Path, to: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with one of its JSON files changed."""
    shutil.copytree(folder, to)
    content = json.loads((to / name).read_text())
    change(content)
    (to / name).write_text(json.dumps(content))
    return to


STATEFUL = {
    "lfm2": lambda: Lfm2ForCausalLM(
        Lfm2Config(**_small(), layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    ),
    "qwen3_next": lambda: Qwen3NextForCausalLM(
        Qwen3NextConfig(**_small(), layer_types=["linear_attention", "full_attention"], head_dim=16)
    ),
}


def _small() -> dict[str, Any]:
    return {
        "vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    }  # fmt: skip


@pytest.mark.parametrize("kind", STATEFUL)
def test_layers_other_than_attention_are_refused(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """An attention mask could not separate packed expressions."""
    shutil.copytree(folders["llama"], tmp_path / kind)
    (tmp_path / kind / "model.safetensors").unlink()
    STATEFUL[kind]().save_pretrained(tmp_path / kind)
    with pytest.raises(WeightsError, match="packed into one sequence would affect one another; use an LLM with"):
        load(tmp_path / kind)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["granite", "cohere"])
def test_logits_are_scaled_as_in_their_family(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    shutil.copytree(folders["llama"], tmp_path / kind)
    (tmp_path / kind / "model.safetensors").unlink()
    model: Any = {
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**_small(), logits_scaling=4.0)),
        "cohere": lambda: CohereForCausalLM(CohereConfig(**_small(), logit_scale=0.25)),
    }[kind]()
    model.save_pretrained(tmp_path / kind)
    states = torch.randn(3, WIDTH)
    unscaled = model.get_output_embeddings()(states)
    torch.testing.assert_close(load(tmp_path / kind).answer_logits(states)[:, : len(WORDS)], unscaled / 4)


def test_a_chat_template_that_cannot_be_used_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for number, (template, sentence) in enumerate(
        [
            ("{{ bos_token }} hello", "leaves out the user's text; use llm.prompt: plain"),
            ("{{ raise_exception('no turn') }}", r"cannot be used \(no turn\); use llm.prompt: plain"),
            ("{% if %}", "cannot be used"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(folders["llama"], folder)
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(WeightsError, match=sentence):
            load(folder, prompt="chat")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": "32"}, "cannot be read"),
        ({"num_attention_heads": 0}, "cannot be read"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "cannot be read"),
    ],
)
def test_an_invalid_configuration_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(WeightsError, match=sentence) as raised:
        load(edited(folders["llama"], tmp_path / "x", "config.json", lambda content: content.update(change)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04 and no more"])
def test_a_truncated_bin_file_is_one_sentence(folders: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "x")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        load(folder)


def test_a_sentencepiece_tokenizer_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    """Vicuna has no other tokenizer file."""
    folder = shutil.copytree(folders["llama"], tmp_path / "x")
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "chat_template.jinja").unlink()
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=11, hard_vocab_limit=False,
        model_type="char",
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    assert load(folder).prompts(["the star"]).mask.sum() > 2
