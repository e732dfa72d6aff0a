"""The estimated peak memory of a training step is compared with the memory of all live tensors in two steps."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from harness.assembly.assembly import Assembly, assemble, build_vocabulary, load_examples, prepare
from harness.planning.published import PUBLISHED, LLMShape
from harness.planning.step_memory import StepMemory, images_per_device, step_memory
from harness.study.cell_spec import CellSpec
from harness.study.study import Study
from harness.study.training_config import TrainingConfig
from harness.training.trainer import Trainer
from tests.live_tensors import LiveTensors

CPU = torch.device("cpu")
GIB = 2**30
ARMS = {"mlp": {"name": "mlp"}, "pooling": {"name": "pooling", "tokens": 36}}


def spec(preset: str, arm: str = "mlp", *overrides: str) -> CellSpec:
    """A cell of a preset."""
    study: dict[str, Any] = {
        "question": "Does it fit?",
        "extends": f"presets/{preset}.yaml",
        "arms": {name: {"projector": settings} for name, settings in ARMS.items()},
        "baseline": "pooling",
    }
    return {cell.arm: cell.spec for cell in Study.from_dict(study, overrides).cells()}[arm]


def small_spec(preset: str, arm: str) -> CellSpec:
    """Two steps on few images, with a random vision encoder."""
    overrides = ("vision_encoder.name=random-dinov2-small", "init_from=null", "data.train_images=16")
    training = ("training.steps=2", "training.precision=float32")
    return spec(preset, arm, *(f"base.{one}" for one in (*overrides, *training)))


def measured(spec: CellSpec) -> tuple[int, int]:
    """Bytes of the models, and of all tensors at the peak of two steps."""
    examples = load_examples(spec, "train")
    assembly = assemble(spec, build_vocabulary(examples), CPU)
    prepare(assembly.batches, examples, lambda _: None, with_mask_inputs=assembly.segmenter.mask_decoder.learns)
    trainer = Trainer(
        assembly.segmenter, assembly.batches, spec.training, torch.Generator().manual_seed(0), lambda *_: None
    )
    with LiveTensors(_weights(assembly)) as live:
        models = live.current
        trainer.run(examples)
    return models, live.peak


def _weights(assembly: Assembly) -> list[torch.Tensor]:
    modules = [assembly.segmenter, assembly.batches.vision.encoder]
    modules += [assembly.batches.sam.model] if assembly.batches.sam is not None else []
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("preset", ["embedded", "small"])
def test_the_estimate_is_close_to_the_measured_peak(preset: str, arm: str) -> None:
    """In total, and without the models, whose size is known almost exactly.

    Activations of `small` are overestimated, because words of scenes have fewer than `TOKENS_PER_WORD` tokens.
    """
    cell = small_spec(preset, arm)
    estimate, (models, peak) = step_memory(cell, "float32", "cpu"), measured(cell)
    assert 0.7 < estimate.total / peak < 1.4
    assert 0.7 < (estimate.total - estimate.weights) / (peak - models) < 1.4


def paper(*overrides: str, precision: str = "bfloat16") -> StepMemory:
    """The estimate of the arm `mlp` at the paper's scale on a GPU."""
    return step_memory(spec("paper", "mlp", *overrides), precision, "cuda")


def test_settings_that_save_memory_do_so_in_this_order() -> None:
    sizes = [
        paper(precision="float32"),
        paper(),
        paper("base.training.micro_batch_images=4"),
        paper("base.training.micro_batch_images=1"),
        paper("base.training.micro_batch_images=1", "base.llm.gradient_checkpointing=true"),
        paper(
            "base.training.micro_batch_images=1", "base.llm.gradient_checkpointing=true", "base.llm.quantization=4bit"
        ),
    ]
    assert all(larger.total > smaller.total for larger, smaller in pairwise(sizes))


def test_activations_grow_with_the_micro_batch_and_inputs_with_the_batch() -> None:
    one, four = (paper(f"base.training.micro_batch_images={size}") for size in (1, 4))
    assert four.activations == pytest.approx(4 * one.activations)
    assert four.inputs == one.inputs
    assert paper("base.training.batch_images=16").inputs == pytest.approx(2 * one.inputs)


def test_adamw_keeps_two_moments_and_muon_one_of_matrices() -> None:
    adamw, muon = (paper(f"base.training.optimizer={name}") for name in ("adamw", "muon"))
    assert adamw.optimizer == 2 * adamw.gradients
    assert 1 < muon.optimizer / muon.gradients < 1.1


def test_a_learning_mask_decoder_needs_memory_for_every_expression() -> None:
    three, six = (paper(f"base.training.expressions_per_image={count}") for count in (3, 6))
    points = paper("base.mask_decoder.prompt=points", "base.training.location_loss=1.0")
    assert points.activations < three.activations < six.activations
    assert points.gradients < three.gradients


def test_lora_adds_to_a_frozen_llm() -> None:
    assert paper("base.llm.lora=null").activations < paper().activations


@pytest.mark.parametrize("name", [name for name, one in PUBLISHED.items() if isinstance(one.shape, LLMShape)])
def test_the_shape_of_an_llm_gives_its_parameters(name: str) -> None:
    """Without the biases of Qwen2.5."""
    found = PUBLISHED[name]
    assert isinstance(found.shape, LLMShape)
    assert found.shape.linear_parameters + found.shape.other_parameters == pytest.approx(found.parameters, rel=2e-5)


@pytest.mark.parametrize(("devices", "images"), [(1, 8), (2, 4), (3, 3)])
def test_the_images_of_a_step_are_divided_among_devices(devices, images):
    assert images_per_device(TrainingConfig(steps=1, batch_images=8, devices=devices)) == images
