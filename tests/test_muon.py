"""Muon: orthogonalised updates, equal to those of torch.optim.Muon."""

import pytest
import torch
from torch.testing import assert_close

from harness.study.training_config import TrainingConfig
from harness.training.muon import Muon, orthogonalise
from harness.training.optimizers import build_optimizers
from tests.tiny import tiny_segmenter


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    matrices[1] *= 1e-3
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_matrices_of_a_stack_are_orthogonalised_independently():
    matrices = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0))
    assert_close(orthogonalise(matrices)[2], orthogonalise(matrices[2:3])[0])


def test_updates_equal_those_of_torchs_muon():
    """Torch orthogonalises in bfloat16, so the tolerance is that of its eight bits."""
    initial = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(initial.clone()) for _ in range(2))
    first = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.5)
    second = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradient = torch.randn(12, 7, generator=torch.Generator().manual_seed(step + 1))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    assert (theirs - initial).abs().max() > 0.1
    assert_close(ours, theirs, atol=0.01, rtol=0)


def test_muon_gets_hidden_matrices_and_adamw_all_other_parameters():
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    parameters = [p for p in segmenter.parameters() if p.requires_grad]
    config = TrainingConfig(steps=1, optimizer="muon")
    adamw, muon = build_optimizers(segmenter, parameters, config)
    owned = [{id(p) for group in o.param_groups for p in group["params"]} for o in (adamw, muon)]
    assert not owned[0] & owned[1]
    assert owned[0] | owned[1] == {id(p) for p in parameters}
    names = {name for name, p in segmenter.named_parameters() if id(p) in owned[1]}
    assert "llm.model.model.layers.0.self_attn.q_proj.weight" in names
    tokens = ("llm.answers", "iou_token", "mask_tokens", "embed_tokens")
    assert not any(token in name for name in names for token in tokens)
    assert len(build_optimizers(segmenter, parameters, TrainingConfig(steps=1))) == 1
