"""`llm.gradient_checkpointing` changes the memory of a training step, and neither losses nor gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, LlamaForCausalLM

from harness.errors import WeightsError
from harness.model.config import LLMConfig, LoRAConfig
from harness.model.llm.language_model import LanguageModel, build_llm
from harness.study.training_config import TrainingConfig
from harness.training.sampler import EpochSampler
from harness.training.trainer import Trainer
from tests.checkpoints import LLMS, write_llm
from tests.saved_tensors import saved_tensors
from tests.tiny import FixedBatches, tiny_segmenter

LORA = LoRAConfig(rank=2, targets=("o_proj", "down_proj"), dropout=0.5)
every_family = pytest.mark.parametrize("kind", LLMS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random checkpoint of each family."""
    found = {kind: tmp_path_factory.mktemp("llms") / kind for kind in LLMS}
    for kind, folder in found.items():
        write_llm(kind, folder)
    return found


def load(folder: Path, *, is_checkpointed: bool, lora: LoRAConfig | None = LORA) -> LanguageModel:
    config = LLMConfig(name=str(folder), template="{expression} .", lora=lora, gradient_checkpointing=is_checkpointed)
    torch.manual_seed(1)
    llm = build_llm(config, words=())
    # The second matrix of a LoRA begins at zero, with which the first has no gradient.
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return llm


def gradients(llm: LanguageModel, stage: tuple[str, ...] = ("early", "late")) -> dict[str, Tensor]:
    """The terms of the objective and the gradients of one step, by name."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter(llm=llm).train()
    batches = FixedBatches(llm)
    config = TrainingConfig(steps=1, batch_images=2, expressions_per_image=2, location_loss=1.0, precision="float32")
    trainer = Trainer(segmenter, batches, config, torch.Generator().manual_seed(0), lambda *_: None)
    trainer.samplers = [EpochSampler(batches.examples, 2, trainer.generator)] * 2
    for name, group in trainer.groups.items():
        for parameter in group:
            parameter.requires_grad_(name in stage)
    terms = trainer.backward(0)
    return {**terms, **{name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}}


def assert_same_step(folder: Path, *, lora: LoRAConfig | None, stage: tuple[str, ...]) -> dict[str, Tensor]:
    expected = gradients(load(folder, is_checkpointed=False, lora=lora), stage)
    found = gradients(load(folder, is_checkpointed=True, lora=lora), stage)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    return found


@every_family
def test_a_step_has_the_same_losses_and_gradients(folders: dict[str, Path], kind: str) -> None:
    """Also with dropout, because the recomputed masks are those of the forward pass."""
    found = assert_same_step(folders[kind], lora=LORA, stage=("early", "late"))
    adapters = [value for name, value in found.items() if "lora_" in name]
    assert len(adapters) == 2 * 2 * 2  # two layers, two targets, two matrices each
    assert all(value.abs().max() > 0 for value in adapters)


@every_family
def test_fewer_than_a_quarter_of_the_activations_are_saved(folders: dict[str, Path], kind: str) -> None:
    num_bytes = []
    for is_checkpointed in (False, True):
        llm = load(folders[kind], is_checkpointed=is_checkpointed).train()
        embeds = torch.randn(2, 10, llm.width, requires_grad=True)
        causal, positions = torch.ones(2, 10, 10, dtype=torch.bool).tril(), torch.arange(10).expand(2, -1)
        with saved_tensors(llm) as saved:
            llm(embeds, causal, positions)
        num_bytes.append(saved.num_bytes)
    assert num_bytes[1] < num_bytes[0] / 4


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_projector_learns_through_a_frozen_llm(folders: dict[str, Path], lora: LoRAConfig | None) -> None:
    found = assert_same_step(folders["llama"], lora=lora, stage=("early",))
    assert not any("lora_" in name for name in found)
    assert all(value.abs().max() > 0 for name, value in found.items() if name.startswith("projector."))


def test_adapters_learn_from_inputs_without_gradients(folders: dict[str, Path]) -> None:
    found = []
    for is_checkpointed in (False, True):
        llm = load(folders["llama"], is_checkpointed=is_checkpointed).train()
        ids = llm.prompts(["the red square"]).ids
        causal = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        embeds = llm.embed(ids)
        assert not embeds.requires_grad
        torch.manual_seed(0)
        llm(embeds, causal, torch.arange(ids.shape[1])[None]).square().sum().backward()
        found.append([p.grad for name, p in llm.named_parameters() if "lora_" in name])
    assert all(value is not None for value in found[0])
    assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generation_keeps_its_cache(folders: dict[str, Path]) -> None:
    llm = load(folders["llama"], is_checkpointed=True).eval()
    ids, cache = llm.prompts(["the red square"]).ids, DynamicCache()
    causal = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    llm(llm.embed(ids), causal, torch.arange(ids.shape[1])[None], cache)
    assert cache.get_seq_length() == ids.shape[1]


def test_it_is_refused_for_an_llm_from_scratch() -> None:
    settings: dict[str, Any] = {"name": "tiny", "width": 32, "layers": 2, "heads": 4}
    with pytest.raises(ValidationError, match=r"gradient_checkpointing: true cannot take effect on the LLM 'tiny'"):
        LLMConfig(**settings, gradient_checkpointing=True)


def test_a_family_without_support_is_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(
        WeightsError, match=r"llm\.gradient_checkpointing: the layers of .* \(LlamaForCausalLM\) do not"
    ):
        load(folders["llama"], is_checkpointed=True)
