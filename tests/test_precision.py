"""`auto` selects a precision by hardware; both kinds of hardware are simulated."""

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
@pytest.mark.parametrize("explicit", ["float32", "bfloat16"])
def test_an_explicit_precision_is_kept(monkeypatch, explicit, is_native):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda _: is_native)
    assert resolve_precision(explicit, CPU) == explicit
