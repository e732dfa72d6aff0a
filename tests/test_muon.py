"""Muon steps every direction alike, as torch's own does."""

import pytest
import torch
from torch.testing import assert_close

from harness.study.training_config import TrainingConfig
from harness.training.muon import Muon, orthogonalise
from harness.training.trainer import build_optimizers
from tests.tiny import tiny_segmenter


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_singular_values_come_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    matrices[1] *= 1e-3
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_matrix_is_orthogonalised_alone_as_in_company():
    matrices = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0))
    assert_close(orthogonalise(matrices)[2], orthogonalise(matrices[2:3])[0])


def test_steps_like_torchs_muon():
    """Torch orthogonalises in bfloat16, so the two agree to its eight bits."""
    start = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    first = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.5)
    second = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradient = torch.randn(12, 7, generator=torch.Generator().manual_seed(step + 1))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    assert (theirs - start).abs().max() > 0.1
    assert_close(ours, theirs, atol=0.01, rtol=0)


def test_hidden_matrices_go_to_muon_and_all_else_to_adamw():
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
