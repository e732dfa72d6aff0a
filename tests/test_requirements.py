"""Download size and memory of a study's weights are reported before anything is fetched."""

from pathlib import Path

import pytest
import torch

from harness.model.weights.known import CHECKPOINTS, PACKAGED, SHIPPED
from harness.planning import requirements
from harness.study.study import Study

STUDY = Path(__file__).parent.parent / "studies" / "refcoco_paper.yaml"


def specs(preset: str, *overrides: str):
    return [cell.spec for cell in Study.from_yaml(STUDY, [f"extends=presets/{preset}.yaml", *overrides]).cells()]


def of_weights(specs) -> str:
    """The first line of the verdict."""
    return requirements.verdict(specs).splitlines()[0]


@pytest.fixture
def _a_small_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(requirements, "accelerator", lambda: {"device": "cpu"})
    monkeypatch.setattr(requirements, "memory_gib", lambda: 16.0)
    monkeypatch.setattr(requirements, "resolve_precision", lambda *_: "float32")


@pytest.mark.usefixtures("_a_small_machine")
@pytest.mark.parametrize("preset", ["paper", "paper-clip", "qwen2-vl"])
def test_the_papers_scale_exceeds_a_laptop(preset):
    verdict = of_weights(specs(preset))
    assert "sam-vit-h (2.6 GB to fetch)" in verdict
    assert verdict.endswith("the CPU has 16.0 GiB: this machine cannot run the study")


@pytest.mark.usefixtures("_a_small_machine")
@pytest.mark.parametrize(("precision", "llm_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_memory_counts_weights_once_in_the_precision_of_this_machine(precision, llm_bytes, monkeypatch):
    monkeypatch.setattr(requirements, "resolve_precision", lambda *_: precision)
    expected = 4 * (304_368_640 + 641_090_608) + llm_bytes * 6_738_415_616
    assert f"they take up to {expected / 2**30:.1f} GiB" in requirements.verdict(specs("paper"))


@pytest.mark.usefixtures("_a_small_machine")
def test_4bit_requires_half_a_byte_and_a_cuda_device():
    (spec, *_) = specs("paper")
    llm = spec.llm.model_copy(update={"quantization": "4bit"})
    verdict = of_weights([spec.model_copy(update={"llm": llm})])
    assert f"they take up to {(4 * (304_368_640 + 641_090_608) + 6_738_415_616 / 2) / 2**30:.1f} GiB" in verdict
    if not torch.cuda.is_available():
        assert verdict.endswith(
            "llm.quantization requires a CUDA device, found the CPU: this machine cannot run the study"
        )


@pytest.mark.usefixtures("_a_small_machine")
def test_the_memory_of_an_accelerator_is_compared(monkeypatch):
    monkeypatch.setattr(
        requirements, "accelerator", lambda: {"device": "H100", "cuda": "13", "device_memory_gib": 80.0}
    )
    assert of_weights(specs("paper")).endswith("H100 has 80.0 GiB; training requires more memory than the weights")


@pytest.mark.usefixtures("_a_small_machine")
def test_cached_weights_and_unknown_sizes_are_reported(tmp_path):
    weights = tmp_path / "weights" / "dinov2-small"
    weights.mkdir(parents=True)
    (weights / Path(PACKAGED["dinov2-small"].member).name).touch()
    found = [
        spec.model_copy(update={"llm": spec.llm.model_copy(update={"name": "owner/model"})}) for spec in specs("small")
    ]
    verdict = requirements.verdict(found)
    assert "dinov2-small (cached), owner/model (unknown size to fetch)" in verdict
    assert "without owner/model (size unknown)" in verdict
    assert "memory of a training step: unknown with owner/model, whose config.json is not on this machine" in verdict


@pytest.mark.usefixtures("_a_small_machine")
def test_cards_that_are_too_small_get_the_settings_that_fit():
    """Smaller micro-batches come before gradient checkpointing."""
    lines = requirements.verdict(specs("paper")).splitlines()
    by_device = {line.split("  ")[1]: line for line in lines if line.startswith("  ") and "fit" in line}
    assert "fits with training.micro_batch_images: " in by_device["40 GB card"]
    assert "gradient_checkpointing" not in by_device["40 GB card"]
    assert by_device["80 GB card"].endswith("fits")
    assert "does not fit: about " in by_device["the CPU (16.0 GiB)"]
    longer = requirements.verdict(specs("paper", "base.training.expressions_per_image=40")).splitlines()
    assert any("24 GB card" in line and "llm.gradient_checkpointing: true" in line for line in longer)


@pytest.mark.usefixtures("_a_small_machine")
def test_a_small_study_fits_everywhere():
    assert "  fits: 24 GB card, 40 GB card, 80 GB card, the CPU (16.0 GiB)" in requirements.verdict(specs("embedded"))


def test_all_named_weights_have_a_size():
    assert {*PACKAGED, *SHIPPED, *CHECKPOINTS} <= set(requirements.PUBLISHED)
