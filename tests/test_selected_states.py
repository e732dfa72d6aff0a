"""The fast path of `tiny` in training: hidden states and gradients of transformers' own forward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from harness.model.llm.language_model import LanguageModel
from harness.model.llm.packing import PackedSequence
from harness.model.segmenter import Segmenter
from projectors import VisualTokens
from tests.tiny import ask, tiny_segmenter

TEXTS = [["the red square", "the blue star left of the circle", "the green circle"], ["the star", "the red circle"]]
States = Callable[[LanguageModel, PackedSequence, Tensor], Tensor]


def by_transformers(llm: LanguageModel, packed: PackedSequence, is_selected: Tensor) -> Tensor:
    """All states of all layers, of which the selected ones are returned."""
    return llm(packed.embeds, packed.attention, packed.positions)[is_selected]


def _segmenter(visual_attention: str, seg_state: str) -> Segmenter:
    """With biases and gains of norms that differ from their initial zeros and ones."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter(visual_attention=visual_attention, seg_state=seg_state)
    with torch.no_grad():
        for parameter in segmenter.llm.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return segmenter


def _outputs(segmenter: Segmenter, *, is_fast: bool, precision: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """States of answers and [SEG], and the gradients of visual tokens and parameters; one visual token is padding."""
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, 4, segmenter.llm.width, generator=generator).requires_grad_()
    mask = torch.tensor([[True, True, False, True], [True] * 4])
    segmenter.zero_grad()
    if not is_fast:
        segmenter.llm.selected_states = by_transformers.__get__(segmenter.llm)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        answers, segs = segmenter.run_llm(VisualTokens(embeds, mask), ask(segmenter.llm, TEXTS))
    if not is_fast:
        del segmenter.llm.selected_states
    weights = torch.randn(2, *answers.shape, generator=generator)
    ((answers * weights[0]).sum() + (segs * weights[1]).sum()).backward()
    gradients = {name: p.grad.clone() for name, p in segmenter.llm.named_parameters() if p.grad is not None}
    return {"answers": answers.detach(), "segs": segs.detach(), "embeds": embeds.grad, **gradients}


@pytest.mark.parametrize("seg_state", ["predict", "own"])
@pytest.mark.parametrize("visual_attention", ["causal", "bidirectional"])
def test_states_and_gradients_equal_those_of_transformers(visual_attention, seg_state):
    segmenter = _segmenter(visual_attention, seg_state)
    expected, found = (_outputs(segmenter, is_fast=is_fast) for is_fast in (False, True))
    assert found.keys() == expected.keys()
    assert len(found) > 20
    for name, value in expected.items():
        scale = float(value.abs().max())
        assert scale > 1e-3, name
        assert_close(
            found[name], value, atol=1e-5 * max(1.0, scale), rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_bfloat16_is_as_close_to_float32_as_that_of_transformers():
    segmenter = _segmenter("bidirectional", "predict")
    exact = _outputs(segmenter, is_fast=True)
    slow, fast = (_outputs(segmenter, is_fast=is_fast, precision=torch.bfloat16) for is_fast in (False, True))
    for name, value in exact.items():
        errors = [float((found[name] - value).square().mean().sqrt()) for found in (slow, fast)]
        assert 0 < errors[1] < 1.5 * errors[0] + 1e-4, name


def test_a_frozen_llm_gives_the_same_gradients_to_visual_tokens():
    segmenter = _segmenter("bidirectional", "predict")
    expected = _outputs(segmenter, is_fast=True)["embeds"]
    segmenter.llm.model.requires_grad_(False)
    found = _outputs(segmenter, is_fast=True)
    assert_close(found["embeds"], expected, atol=1e-5, rtol=0)
    assert not any(name.startswith("model.") for name in found)


def test_scoring_runs_the_layers_of_transformers():
    segmenter = _segmenter("bidirectional", "predict")
    runs: list[object] = []
    segmenter.llm.model.get_decoder().layers[-1].register_forward_hook(lambda *_: runs.append(1))
    _outputs(segmenter, is_fast=True)
    assert not runs
    with torch.inference_mode():
        segmenter.run_llm(VisualTokens.dense(torch.randn(2, 4, segmenter.llm.width)), ask(segmenter.llm, TEXTS))
    assert runs
