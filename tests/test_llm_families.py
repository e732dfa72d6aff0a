"""Every family of causal LMs: loaded strictly, and packed expressions read as the family reads one alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from harness.backbone.config import LLMConfig, LoRAConfig
from harness.backbone.llm import LanguageModel, build_llm
from harness.backbone.packing import pack
from harness.errors import WeightsError
from projectors import VisualTokens
from tests.checkpoints import LLMS, WIDTH, WORDS, write_llm

VISUAL = 6
TEXTS = ["the red square", "the star", "the blue blue star"]
every_family = pytest.mark.parametrize("kind", LLMS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random checkpoint of each family with a tokenizer that begins with BOS and knows a chat."""
    found = {kind: tmp_path_factory.mktemp("llms") / kind for kind in LLMS}
    for kind, folder in found.items():
        write_llm(kind, folder)
    return found


def load(folder: Path, **settings: Any) -> LanguageModel:
    torch.manual_seed(1)
    return build_llm(LLMConfig(name=str(folder), template="{expression} .", **settings), words=())


def visual_tokens() -> VisualTokens:
    return VisualTokens.dense(torch.randn(1, VISUAL, WIDTH, generator=torch.Generator().manual_seed(0)))


def read_packed(llm: LanguageModel, texts: list[str]) -> list[Tensor]:
    """The states of each expression's tokens, all packed behind one image."""
    prompts = llm.prompts([llm.wish(text) for text in texts])
    packed = pack(visual_tokens(), llm.embed(prompts.ids)[None], prompts.mask[None], bidirectional=False)
    states = llm(packed.embeds, packed.attention, packed.positions)[0, VISUAL:]
    return list(states.split(prompts.mask.sum(-1).tolist()))


@every_family
@torch.no_grad()
def test_packed_expressions_are_read_as_the_family_reads_one_alone(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind]).eval()
    softcapped = "eager" if kind == "gemma2" else "sdpa"
    model: Any = AutoModelForCausalLM.from_pretrained(folders[kind], attn_implementation=softcapped).eval()
    for text, states in zip(TEXTS, read_packed(llm, TEXTS), strict=True):
        ids = llm.prompts([llm.wish(text)]).ids
        words = model.get_input_embeddings()(ids)
        expected = model(inputs_embeds=torch.cat([visual_tokens().embeds, words], dim=1), output_hidden_states=True)
        torch.testing.assert_close(states, expected.hidden_states[-1][0, VISUAL:], atol=1e-4, rtol=1e-4)
        logits = llm.answer_logits(states)
        assert logits.shape[-1] == len(WORDS) + 2
        torch.testing.assert_close(logits[:, : len(WORDS)], expected.logits[0, VISUAL:], atol=1e-4, rtol=1e-4)


@every_family
@torch.no_grad()
def test_of_the_layers_the_first_are_kept(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind], layers=1).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(folders[kind], attn_implementation="eager").eval()
    assert len(model.get_decoder().layers) > 1
    for text, states in zip(TEXTS, read_packed(llm, TEXTS), strict=True):
        words = model.get_input_embeddings()(llm.prompts([llm.wish(text)]).ids)
        read = model(inputs_embeds=torch.cat([visual_tokens().embeds, words], dim=1), output_hidden_states=True)
        expected = model.get_decoder().norm(read.hidden_states[1])[0, VISUAL:]
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_more_layers_than_there_are_cannot_be_kept(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"llm\.layers is 99, and .* has \d+; keep at most so many"):
        load(folders["llama"], layers=99)


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


@torch.no_grad()
def test_an_image_stands_where_a_user_would_say_it(folders: dict[str, Path]) -> None:
    for prompt, before, behind in (
        ("plain", "[BOS]", "the star ."),
        ("chat", "[BOS] user", "the star . assistant"),
    ):
        llm = load(folders["llama"], prompt=prompt)
        assert llm.tokenizer.decode(llm.opening) == before
        assert llm.tokenizer.batch_decode(llm.prompts([llm.wish("the star")]).ids) == [behind]
        opened = llm.opened(visual_tokens())
        assert opened.mask.all()
        torch.testing.assert_close(opened.embeds[0, : len(llm.opening)], llm.embed(llm.opening))
        torch.testing.assert_close(opened.embeds[0, len(llm.opening) :], visual_tokens().embeds[0])


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
    prompts = llm.prompts([llm.wish(text) for text in TEXTS])
    drawn = torch.ones(1, len(TEXTS), dtype=torch.bool)
    words, mask = llm.with_own_seg(llm.embed(prompts.ids)[None], prompts.mask[None], drawn)
    packed = pack(visual_tokens(), words, mask, bidirectional=False)
    states = llm(packed.embeds, packed.attention, packed.positions)[0, packed.first[0] + prompts.mask.sum(-1)]
    assert llm.own_seg is not None
    for text, state in zip(TEXTS, states, strict=True):
        embeds = [
            visual_tokens().embeds,
            model.get_input_embeddings()(llm.prompts([llm.wish(text)]).ids),
            llm.own_seg[None, None],
        ]
        expected = model.model(inputs_embeds=torch.cat(embeds, dim=1)).last_hidden_state[0, -1]
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


@every_family
@torch.no_grad()
def test_words_read_one_by_one_behind_a_cache_are_read_as_all_at_once(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind]).eval()
    embeds = visual_tokens().embeds
    length = embeds.shape[1]
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    positions = torch.arange(length)[None]
    whole, cache, known = llm(embeds, causal, positions), DynamicCache(), length // 2
    states = [llm(embeds[:, :known], causal[:, :known, :known], positions[:, :known], cache)]
    for place in range(known, length):
        here = slice(place, place + 1)
        seen = positions[:, : place + 1]
        states.append(llm(embeds[:, here], causal[:, here, : place + 1], positions[:, here], cache, seen))
    torch.testing.assert_close(torch.cat(states, dim=1), whole, atol=1e-4, rtol=1e-4)
