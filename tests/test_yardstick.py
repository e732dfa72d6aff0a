"""What a projector costs on the reference backbone."""

import pytest

import projectors
from harness.yardstick import given, measured
from projectors import REFERENCE_DIMS
from tests.projector_cases import OPTIONAL


def test_the_mlp_costs_what_its_layers_multiply():
    cost = measured("mlp")
    assert (cost.tokens, cost.parameters, cost.needs) == (576, 20_979_712, ())
    assert cost.flops == 2 * 576 * (1024 * 4096 + 4096 * 4096)


@pytest.mark.parametrize("name", projectors.names())
def test_every_projector_is_measured_with_what_it_reads(name):
    cost = measured(name)
    assert 1 <= cost.tokens <= REFERENCE_DIMS.num_patches + 1
    assert cost.flops > 0
    projector = projectors.get(name)(projectors.get(name).Config(), REFERENCE_DIMS)
    features = given(projector)
    assert {field for field in OPTIONAL if getattr(features, field) is not None} == projector.needs
