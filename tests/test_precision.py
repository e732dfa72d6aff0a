"""`auto` stands for one precision on each kind of hardware; both are forced here."""

import pytest
import torch

from harness.system import precision
from harness.system.precision import autocast, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("is_native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_follows_the_hardware(monkeypatch, is_native, expected):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda _: is_native)
    assert resolve_precision("auto", CPU) == expected
    with autocast("auto", CPU):
        assert torch.is_autocast_enabled("cpu") == is_native


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_a_precision_that_is_given_stays(monkeypatch, given, is_native):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda _: is_native)
    assert resolve_precision(given, CPU) == given
