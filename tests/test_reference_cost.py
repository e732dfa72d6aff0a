"""The cost of a projector at reference dimensions."""

import pytest
import torch

import projectors
from harness.evaluation.cost import counting_flops
from harness.planning.reference_cost import measure, reference_features
from projectors import REFERENCE_DIMS
from tests.projector_cases import OPTIONAL

MEASURED_IN_THE_RELEASES = [
    ("linear", {}, "4.83"),
    ("mlp", {}, "24.16"),
    ("pooling", {"tokens": 144}, "6.04"),
    ("pixel_shuffle", {}, "9.66"),
    ("pixel_shuffle", {"scale": 4, "head": "linear"}, "4.83"),
    ("ldpv2", {}, "24.17"),
    ("c_abstractor", {"tokens": 64}, "10.78"),
    ("c_abstractor", {"tokens": 144}, "15.15"),
    ("c_abstractor", {"tokens": 256}, "21.26"),
    # 17.1, 23.5 and 39.7 of the Q-Former, and the linear layer behind it.
    ("qformer", {"tokens": 32}, "17.3"),
    ("qformer", {"tokens": 64}, "23.9"),
    ("qformer", {"tokens": 144}, "40.6"),
    ("qwen_resampler", {}, "71.7"),
    ("mqt", {"tokens": 36}, "2.95"),
    ("mqt", {"tokens": 256}, "6.24"),
    ("token_packer", {"scale": 2}, "21.4"),
    ("token_packer", {"scale": 3}, "17.6"),
    ("token_packer", {"scale": 4}, "16.2"),
]
"""GFLOPs at the reference backbone, of the authors' own classes."""


def test_the_flops_of_the_mlp_are_those_of_its_layers():
    cost = measure("mlp")
    assert (cost.tokens, cost.parameters, cost.required_inputs) == (576, 20_979_712, ())
    assert cost.flops == 2 * 576 * (1024 * 4096 + 4096 * 4096)


def test_prumerge_keeps_the_patches_that_cls_attends_to_and_one_token_for_the_rest():
    assert measure("prumerge").tokens == 30 + 1


@pytest.mark.parametrize(("name", "settings", "gflops"), MEASURED_IN_THE_RELEASES)
@torch.inference_mode()
def test_flops_are_those_of_the_release(name, settings, gflops):
    projector = projectors.get(name)(projectors.get(name).Config(**settings), REFERENCE_DIMS).eval()
    with counting_flops(projector) as counter:
        projector(reference_features(projector))
    decimals = len(gflops.partition(".")[2])
    assert f"{counter.get_total_flops() / 1e9:.{decimals}f}" == gflops


@pytest.mark.parametrize("name", projectors.names())
def test_every_projector_is_measured_with_its_required_inputs(name):
    cost = measure(name)
    assert 1 <= cost.tokens <= REFERENCE_DIMS.num_patches + 1
    assert cost.flops > 0
    projector = projectors.get(name)(projectors.get(name).Config(), REFERENCE_DIMS)
    features = reference_features(projector)
    assert {field for field in OPTIONAL if getattr(features, field) is not None} == projector.required_inputs
