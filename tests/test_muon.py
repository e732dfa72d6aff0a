"""Muon: orthogonalised updates, close to those of torch.optim.Muon."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from harness.study.training_config import TrainingConfig
from harness.training.muon import MIN_SINGULAR_VALUE, POLYNOMIALS, Muon, orthogonalise
from harness.training.optimizers import build_optimizers
from tests.tiny import tiny_segmenter

SHAPES = [(8, 8), (6, 20), (20, 6), (40, 30), (24, 96)]


def apply_polynomials(values: Tensor) -> Tensor:
    """The polynomials of single numbers."""
    for a, b, c in POLYNOMIALS:
        values = a * values + b * values**3 + c * values**5
    return values


def test_polynomials_map_singular_values_to_near_one():
    """As near as the five equal steps of the original, of which the smallest gain is that of 0.0015."""
    values = torch.linspace(MIN_SINGULAR_VALUE, 1, 100_000, dtype=torch.float64)
    assert 0.74 < apply_polynomials(values).min() < apply_polynomials(values).max() < 1.27
    small = torch.tensor([1e-5], dtype=torch.float64)
    assert float(apply_polynomials(small) / small) > 300


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [2, None])
def test_orthogonalised_matrices_have_the_polynomials_of_their_singular_values(shape, rank):
    """By a singular value decomposition; singular values are divided by the 4-norm of all of a matrix."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    if rank is not None:
        matrices = matrices[:, :, :rank] @ matrices[:, :rank, :]
    matrices[1] *= 1e-3
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    scaled = values / values.pow(4).sum(1, keepdim=True).pow(0.25)
    expected = left @ torch.diag_embed(apply_polynomials(scaled)) @ right
    assert_close(orthogonalise(matrices.float()), expected.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    matrices[1] *= 1e-3
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_matrix_of_zeros_stays_zero():
    assert not orthogonalise(torch.zeros(2, 4, 12)).any()


def test_matrices_of_a_stack_are_orthogonalised_independently():
    matrices = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0))
    assert_close(orthogonalise(matrices)[2], orthogonalise(matrices[2:3])[0])


def test_updates_are_close_to_those_of_torchs_muon():
    """Both scale singular values to within about 0.25 of 1, but to different values."""
    initial = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(initial.clone()) for _ in range(2))
    first = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.5)
    second = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradient = torch.randn(12, 7, generator=torch.Generator().manual_seed(step + 1))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    changes = [(parameter.detach() - initial).flatten() for parameter in (ours, theirs)]
    assert torch.cosine_similarity(*changes, dim=0) > 0.98
    assert 0.9 < changes[0].norm() / changes[1].norm() < 1.1


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
